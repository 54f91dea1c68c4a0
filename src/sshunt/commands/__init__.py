"""What can be typed: one file a verb. Each builds the parts that it needs and owns their lifetime.

early      the first step of up: what takes time is started before the rest is loaded
captured   what up captures: routes, sockets, the plan made of them
up         the tunnel: names are resolved, listeners bound, the helper asked, ssh started, in order
running    what goes on from there until the end
reconnect  running sessions are asked to try again now
cleanup    what sessions that were killed have left is removed
sudoers    the line that spares a user the password, where that is safe
install_helper  a copy of the helper that is root's alone, for every sshunt of this host
units      that one as a service of systemd
demo       a throw-away office in network namespaces, and the tunnel at work there
"""
