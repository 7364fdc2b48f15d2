"""CSD where people already train; each module needs an optional package.

Of the rest of ``csd_lib`` only ``csd train --log`` imports one of these modules.
"""
