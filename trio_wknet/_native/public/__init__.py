"""Classes that applications use by themselves. They may use `reactor` (the wheel, the pools) and
`base`, and are independent of any engine."""
