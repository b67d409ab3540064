"""Bidirectional Mamba encoders for ESPnet.

Importing this package makes ``conbimamba``, ``transbimamba``, ``bimamba`` and
``e_branchbimamba`` known to every ESPnet task that is imported afterwards, and to those that
are imported already. It loads nothing but the standard library: torch, numba, triton,
mamba_ssm and ESPnet are imported when they are first needed.
"""

from espnet_bimamba import startup

__version__ = "0.1.0"

startup.install()
