"""Names: what this host's programs ask, and what becomes of it.

dns   takes in the queries that the kernel redirected, and answers them by way of the far side
"""
