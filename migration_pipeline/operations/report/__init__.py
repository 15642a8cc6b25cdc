"""The page to look at when a migration is over: one HTML file that needs nothing else. Needs the extra ``report``.

`account.py` gathers what is known and judges it, `plots.py` draws, `page.py` writes the page.
"""
