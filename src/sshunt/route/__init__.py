"""Who carries a flow. Pure.

router  which carrier a flow goes to
routes  targets and exclusions become routes; which one an address has
"""
