"""``otf top``: the page in a terminal. Nothing here is imported before it is asked for."""
