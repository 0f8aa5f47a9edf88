"""``trio_wknet demo``: a server under load, shown live, and compared with Trio's own transport."""
