"""What the kernel should redirect, as text. Renders; never runs a program.

plan      what to capture: listeners, routes, exceptions; flattens routes into regions
nft       plan -> nftables rule text
block     the kill switch, a table of its own
echo_rules  its part about echo requests
nft_datagrams  its part for UDP
iptables  plan -> text for iptables-restore
retained  a former address that is retained means this host to itself alone
nft_held  its chains that hold SYNs back until the far side has connected
pf        the same plan for pf of macOS, FreeBSD, OpenBSD; not run there by our tests
links     whose connections are captured besides this host's own
"""
