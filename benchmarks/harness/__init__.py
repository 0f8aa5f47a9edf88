"""What measures: servers, loads, clients, rounds and results, and the pages that show them.
It uses nothing of the experiments."""
