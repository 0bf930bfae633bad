"""The matrix of clients: what is installed, what each client is asked for, and how its answers are checked.

run.py reads from top to bottom:
    registry.py   the clients: where each comes from, and how its driver is started
    install.py    environments of their own below the cache, renewed every few days
    door.py       the daemon under test
    referee.py    a client of ours that looks at the same objects from beside
    driver.py     a driver: one process a client, one line of JSON a question
    steps.py      the steps that each client goes through
    stories.py    the steps of what is no client of objects: a lake table, a backup
    table.py      docs/clients.md
"""
