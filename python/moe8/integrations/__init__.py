# SPDX-License-Identifier: BSD-3-Clause
"""Other libraries' seams; each module is imported where its library is."""
