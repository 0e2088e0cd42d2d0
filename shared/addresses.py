"""Addresses of repositories, and what stands before the host in them. ◇"""

from __future__ import annotations


def split_address(url: str) -> tuple[str, str]:
    """An address without user and password, and those as they stood in it; "" if there are none.

    Only addresses of web servers hold any: the user of an ssh address is part of the address.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return url, ""
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    return (f"{scheme}://{host}{slash}{path}", userinfo) if at else (url, "")


def join_address(url: str, userinfo: str) -> str:
    """An address with user and password in it, for a peer that knows no other way."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{userinfo}@{rest}" if userinfo and separator else url
