"""sshunt: reach a remote network from unmodified programs over a plain ssh login.

The map of the package (each folder's own ``__init__`` maps the folder):

    mux/        the protocol, pure: bytes and ``now`` in, events and bytes out   (shipped)
    relay/      the only I/O shell around it, the same at both ends              (shipped)
    agent/      the program that runs on the far side                            (shipped)
    transport/  how bytes reach the agent: ssh, the bundle, the bootstrap
    capture/    what the kernel should redirect: plan -> rule text, pure
    helper/     the privileged process that applies it
    routes.py   destination -> remote | direct; most specific wins
    client.py   composition root: start order, supervision, stop
    cli.py      the command line
"""

__version__ = "0.1.0"
