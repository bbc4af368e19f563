"""Reference drivers: a small honest hospital and a small honest pharmacy, and the adapters that a harness talks to.

    python -m erxhub.conform.drivers.hospital      python -m erxhub.conform.drivers.pharmacy

`journal` keeps what must survive a crash, `product` sends and repeats, `hospital_product` and `pharmacy_product` know
their business, `wire` speaks the driver protocol, and the two adapters turn its operations into the products' acts.
Must never: know what a case expects.
"""
