"""What the kernel should redirect, and what it redirected. Renders; never runs a program.

* ``plan``      what to capture: listeners, routes, exceptions; flattens routes into regions
* ``nft``       plan -> nftables rule text
* ``original``  the destination that a redirected connection was made to
"""
