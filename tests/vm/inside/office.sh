#!/bin/sh
# The office around this machine: see ``guests``. Without a word: builds it. With one: runs one of its
# programs.
#
#     this machine -------------------- server -------------------- target
#       192.0.2.1    192.0.2.2 (office), .53    10.55.0.1    10.55.0.2
#
#     server   Debian's sshd with Debian's configuration; the resolver at home, at 192.0.2.53, which
#              knows other addresses for the office's names
#     target   a web server, and the office's resolver, which the server asks
set -eu
at() { host=$1 && shift && exec ip netns exec "$host" "$@"; }
answer() {
    host=$1 && shift
    at "$host" dnsmasq --keep-in-foreground --user=root --no-resolv --no-hosts --conf-file=/dev/null \
        --cache-size=0 --pid-file= --bind-interfaces "$@"
}

case ${1:-} in
sshd)
    mkdir -p /run/sshd
    at server /usr/sbin/sshd -D -e -o PidFile=none
    ;;
web) at target /opt/sshunt/bin/python -B -m sshunt.lab.servers 80 ;;
names) answer target --address=/corp.example/10.55.0.2 ;;
names_at_home)
    answer server --listen-address=192.0.2.53 --address=/corp.example/192.0.2.2 \
        --address=/gate.home/192.0.2.2
    ;;
"")
    ip netns add server
    ip netns add target
    ip link add office0 type veth peer name to-client netns server
    ip -n server link add to-target type veth peer name to-server netns target
    ip link set lo up
    ip -n server link set lo up
    ip -n target link set lo up
    ip address add 192.0.2.1/24 dev office0
    ip -n server address add 192.0.2.2/24 dev to-client
    ip -n server address add 192.0.2.53/24 dev to-client
    ip -n server address add 10.55.0.1/24 dev to-target
    ip -n target address add 10.55.0.2/24 dev to-server
    ip link set office0 up
    ip -n server link set to-client up
    ip -n server link set to-target up
    ip -n target link set to-server up
    ip route add default via 192.0.2.2
    mkdir -p /etc/netns/server
    echo nameserver 10.55.0.2 >/etc/netns/server/resolv.conf
    ;;
*)
    echo "office.sh: no program $1" >&2
    exit 2
    ;;
esac
