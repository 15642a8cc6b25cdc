"""The profiles that ship with the project, one module each. Yours may live in any importable module."""
