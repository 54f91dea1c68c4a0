"""The helper as a service of systemd: its two unit files, word for word.

They are the files of contrib/systemd (a test holds them together), here because an installed sshunt
has no other files than modules.
"""

SOCKET_UNIT = """\
# Who is in the group sshunt gets a helper of his own by connecting here, without a password: see
# docs/howto/passwordless.md. `sshunt install-helper --socket` puts this file into place.

[Unit]
Description=sshunt's privileged helper
Documentation=man:systemd.socket(5)

[Socket]
ListenStream=/run/sshunt-helper.sock
SocketGroup=sshunt
SocketMode=0660
Accept=yes
# A helper for each session: sixteen for a user, who is told so if he wants more.
MaxConnections=256
MaxConnectionsPerSource=32
# Somebody who connects again and again must not have the socket closed for all.
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
"""

SERVICE_UNIT = """\
# One sshunt's helper: its standard input is the connection that sshunt-helper.socket has accepted.

[Unit]
Description=sshunt's privileged helper for one session
CollectMode=inactive-or-failed

[Service]
ExecStart=/usr/local/libexec/sshunt/helper --accepted
StandardInput=socket
StandardOutput=null
StandardError=journal
# It removes its rules when it is asked to stop. What outlives it to see to that leaves by itself.
KillMode=mixed
TimeoutStopSec=20

# What it needs until it has been greeted; after that it keeps CAP_NET_ADMIN, CAP_NET_RAW (for the
# process that looks at packets) and CAP_DAC_OVERRIDE (for control groups that are a user's).
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_DAC_OVERRIDE
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SETPCAP CAP_SYS_PTRACE
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
MemoryMax=512M
PrivateTmp=yes
ProtectClock=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
ReadWritePaths=/run
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
RestrictNamespaces=mnt
RestrictRealtime=yes
RestrictSUIDSGID=yes
RuntimeDirectory=sshunt
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service @mount
TasksMax=32
UMask=0077
"""

#: The group whose members may connect, as the socket's unit has it.
GROUP = "sshunt"

UNITS = {"sshunt-helper.socket": SOCKET_UNIT, "sshunt-helper@.service": SERVICE_UNIT}
