"""Who carries a flow. Pure.

routes  targets and exclusions become routes; which one an address has
"""
