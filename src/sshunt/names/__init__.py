"""Names: what this host's programs ask, and what becomes of it.

doors  whom this host's programs ask, and the sockets at which we answer in their place
dns    takes in the queries that the kernel redirected, and answers them by way of the far side
"""
