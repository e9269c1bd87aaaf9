"""Quotas: sliding windows counted together, in memory or in a server that processes and machines share."""

from .limiter import QuotaLimiter
from .model import Bucket, Buckets, Decision

__all__ = ["Bucket", "Buckets", "Decision", "QuotaLimiter"]
