"""A small instant-messaging service: rooms, private messages, presence and history, for a page
in a browser and for programs, by one process or by several with Redis between them.

``python -m examples.im`` serves, and opens its page. In the order of reading:

* `protocol`: what clients and the service say to each other
* `session`: one client, and what it may ask for
* `hub`: a message's way from one client to all others, and who is in which room
* `server`, `web`: listeners, their limits and their end; the page, and metrics
* `store`, `cluster`: what is remembered, in one process (SQLite) and in several (Redis)
* `nodes`: starting several, and keeping them alive
* `load`: a program that measures it
"""
