"""A small instant-messaging service: rooms, private messages, presence and history, for a page
in a browser and for programs, by one process or by several with Redis between them.

``python -m examples.im`` serves, and names its page. In the order of reading:

* `protocol`: what clients and the service say to each other
* `hub`: who is in which room; a message's way from one client to all others
* `session`: one client, and what it may ask for
* `server`: listeners, limits, and the end: what trio_wknet does for it
* `store`: what the service needs to remember, and its form for one process (SQLite)
* `cluster`, `nodes`: its form for several processes (Redis), and starting them
* `tokens`, `web`: who a client is; the page, and what else is asked by HTTP
* `load`: a program that measures it
"""
