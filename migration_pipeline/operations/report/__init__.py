"""The report of a migration: one HTML file that needs no other files. Requires the extra ``report``.

`account.py` gathers what is known and judges it, `plots.py` draws, `page.py` writes the page.
"""
