"""The names by which the helper is a service of the service manager. The same at both ends.

A module of its own, since the client reads it before anything else is loaded.
"""

#: Where the service manager listens, and starts a helper for each who connects.
SERVICE_SOCKET = "/run/sshunt-helper.sock"

#: The word by which the service manager, and nobody else, starts a helper: see ``starter``.
ACCEPTED_WORD = "--accepted"
