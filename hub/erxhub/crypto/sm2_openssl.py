"""SM2 signatures through OpenSSL's EVP interface, with ctypes: `cryptography` offers no SM2.

A key that verifies often gets a table of its multiples (`sm2_tables`), where this OpenSSL can do that: 91 µs a
verification in place of 230.

Two handles on the same library: the one long call of an operation goes through `CDLL`, which releases the
interpreter lock, and every short call through `PyDLL`, which keeps it. Giving the lock up a dozen times per
signature would make a worker thread wait for the event loop a dozen times.

Owns: finding the library, every pointer it hands out, and leaving the thread's OpenSSL error queue empty.
Must never: be asked for anything unless `load()` proved the library with a signature and a published test
value.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from typing import Any

from erxhub.crypto import sm2_encoding as encoding
from erxhub.crypto import sm2_pure
from erxhub.crypto.sm2_tables import Curve, KeyTable, OpenSslError

PUBLIC_KEYS_KEPT = 4096  # parsed keys, some 2 KiB each; a miss costs about 80 µs, a third of a verification
TABLES_KEPT = 512  # of the keys used last, 86 KB each: 44 MB in all
USES_BEFORE_TABLE = 4  # a table takes as long to make as it saves in some four verifications

_MINIMUM_VERSION = 0x30000000
_DER_SIGNATURE_SIZE_MAX = 72

# GB/T 32918.5 annex A.2: public key, message, r‖s under the default user id.
_KNOWN_PUBLIC_KEY = bytes.fromhex(
    "0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
_KNOWN_PRIVATE_KEY = bytes.fromhex("3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8")
_KNOWN_USER_ID = b"1234567812345678"
_KNOWN_MESSAGE = b"message digest"
_KNOWN_SIGNATURE = bytes.fromhex(
    "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"
    "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa"
)


def _bind(library: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    function = library[name]
    function.restype, function.argtypes = restype, argtypes
    return function


class _Key:
    """An EVP_PKEY, freed with its last reference: one dropped from the cache lives while a thread uses it."""

    __slots__ = ("_free", "pointer")

    def __init__(self, free: Callable[[c_void_p], None], pointer: int) -> None:
        self.pointer = c_void_p(pointer)
        self._free = free

    def __del__(self) -> None:
        self._free(self.pointer)


class _Library:
    """The functions used, with their types.

    Raises OSError or AttributeError when `path` is no OpenSSL 3 or later.
    """

    def __init__(self, path: str) -> None:
        self.short = short = functools.partial(_bind, ctypes.PyDLL(path))
        self.long = long = functools.partial(_bind, ctypes.CDLL(path))
        if short("OpenSSL_version_num", c_ulong)() < _MINIMUM_VERSION:
            raise OSError(f"{path} is older than OpenSSL 3")
        version: bytes = short("OpenSSL_version", c_char_p, c_int)(0)
        self.version = " ".join(version.decode("ascii", "replace").split()[:2])

        bytes_in = POINTER(c_char_p)
        init_types = (c_void_p, POINTER(c_void_p), c_void_p, c_void_p, c_void_p)
        self.err_clear_error = short("ERR_clear_error", None)
        self.pkey_free = short("EVP_PKEY_free", None, c_void_p)
        self.d2i_public = short("d2i_PUBKEY", c_void_p, c_void_p, bytes_in, c_long)
        self.d2i_private = short("d2i_AutoPrivateKey", c_void_p, c_void_p, bytes_in, c_long)
        self.i2d_public = short("i2d_PUBKEY", c_int, c_void_p, bytes_in)
        self.md_fetch = short("EVP_MD_fetch", c_void_p, c_void_p, c_char_p, c_char_p)
        self.md_ctx_new = short("EVP_MD_CTX_new", c_void_p)
        self.md_ctx_free = short("EVP_MD_CTX_free", None, c_void_p)
        self.sign_init = short("EVP_DigestSignInit", c_int, *init_types)
        self.verify_init = short("EVP_DigestVerifyInit", c_int, *init_types)
        self.set_user_id = short("EVP_PKEY_CTX_set1_id", c_int, c_void_p, c_char_p, c_int)
        self.sign = long("EVP_DigestSign", c_int, c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)
        self.verify = long("EVP_DigestVerify", c_int, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)
        # Fetched once and never freed: an implicit fetch in every operation would cost several microseconds.
        self.sm3 = c_void_p(self.md_fetch(None, b"SM3", None))
        if not self.sm3:
            self.err_clear_error()
            raise OSError(f"{path} offers no SM3")

    def key(self, parse: Callable[..., Any], der: bytes) -> _Key:
        """`parse` is one of the two d2i functions. Raises ValueError when OpenSSL does not take the key."""
        start = c_char_p(der)
        pointer: int | None = parse(None, byref(start), len(der))
        if pointer is None:
            self.err_clear_error()
            raise ValueError("OpenSSL does not accept the SM2 key")
        return _Key(self.pkey_free, pointer)

    def context(self, initialise: Callable[..., Any], key: _Key, user_id: bytes) -> c_void_p:
        """An EVP_MD_CTX ready for one operation; the caller frees it.

        Made anew each time: copying a prepared one saves 3 %, but the copy of a signature context with a
        user id set is not something every release of OpenSSL 3.0 gets right.
        """
        context, key_context = c_void_p(self.md_ctx_new()), c_void_p()
        if (
            initialise(context, byref(key_context), self.sm3, None, key.pointer) != 1
            or self.set_user_id(key_context, user_id, len(user_id)) != 1
        ):
            self.md_ctx_free(context)
            self.err_clear_error()
            raise OpenSslError("OpenSSL cannot prepare an SM2 signature operation")
        return context


class OpenSslSigner:
    """A private key held by OpenSSL; every signature takes a fresh random nonce from it."""

    def __init__(self, library: _Library, scalar: bytes, point: bytes) -> None:
        self._library = library
        self._key = library.key(library.d2i_private, encoding.private_key_der(scalar, point))

    def sign(self, message: bytes, user_id: bytes) -> bytes:
        """64 bytes r‖s. Raises OpenSslError."""
        library = self._library
        context = library.context(library.sign_init, self._key, user_id)
        try:
            buffer = ctypes.create_string_buffer(_DER_SIGNATURE_SIZE_MAX)
            size = c_size_t(_DER_SIGNATURE_SIZE_MAX)
            if library.sign(context, buffer, byref(size), message, len(message)) != 1:
                library.err_clear_error()
                raise OpenSslError("OpenSSL could not make an SM2 signature")
        finally:
            library.md_ctx_free(context)
        return encoding.signature_from_der(buffer.raw[: size.value])


class _PublicKey:
    """A public key on the curve: for EVP, and with a table when it is used often."""

    __slots__ = ("_identity", "evp", "point", "table", "uses")

    def __init__(self, point: sm2_pure.Point, evp: _Key) -> None:
        self.point = point
        self.evp = evp
        self.uses = 0
        self.table: KeyTable | None = None
        self._identity = (b"", sm2_pure.identity_digest(b"", point))

    def message_digest(self, user_id: bytes, message: bytes) -> int:
        """e = SM3(ZA ‖ message); ZA is kept for the user id that came last, which is nearly always the same."""
        if self._identity[0] != user_id:
            self._identity = (user_id, sm2_pure.identity_digest(user_id, self.point))
        return int.from_bytes(sm2_pure.sm3(self._identity[1] + message), "big")


class _Tables:
    """Which keys have a table: those that were used more than `uses_before` times, and then of late."""

    def __init__(self, curve: Curve, uses_before: int) -> None:
        self.curve = curve
        self._uses_before = uses_before
        self._lock = threading.Lock()
        self._kept: OrderedDict[_PublicKey, None] = OrderedDict()

    def of(self, key: _PublicKey, public_key: bytes) -> KeyTable | None:
        """The table for this use of the key, or None when it has none yet."""
        if key.table is None:
            key.uses += 1  # two threads may count one use: the table comes a verification later
            if key.uses <= self._uses_before:
                return None
            key.table = self.curve.table(public_key)
        table = key.table
        with self._lock:
            self._kept[key] = None
            self._kept.move_to_end(key)
            if len(self._kept) > TABLES_KEPT:
                dropped, _ = self._kept.popitem(last=False)
                dropped.table, dropped.uses = None, 0
        return table


class OpenSslBackend:
    """SM2 by OpenSSL, safe to use from several threads at once. Made by `load()`.

    A key gets a table after `uses_before_table` verifications; None for never.
    """

    def __init__(self, library: _Library, uses_before_table: int | None = USES_BEFORE_TABLE) -> None:
        self.name = library.version
        self._library = library
        self._public_key = functools.lru_cache(maxsize=PUBLIC_KEYS_KEPT)(self._parse_public_key)
        self._tables: _Tables | None = None
        if uses_before_table is not None:
            with suppress(OpenSslError, AttributeError):
                curve = Curve(library.short, library.long)
                if _tables_prove_themselves(curve):
                    self._tables = _Tables(curve, uses_before_table)

    def public_key(self, scalar: bytes) -> bytes:
        """The uncompressed public point of a 32-byte private scalar in range."""
        library = self._library
        key = library.key(library.d2i_private, encoding.private_key_der(scalar, None))
        size = library.i2d_public(key.pointer, None)
        buffer = ctypes.create_string_buffer(max(size, 1))
        if library.i2d_public(key.pointer, byref(ctypes.cast(buffer, c_char_p))) != size:
            library.err_clear_error()
            raise OpenSslError("OpenSSL could not write the public key")
        point = buffer.raw[-encoding.POINT_SIZE :]
        if buffer.raw[:size] != encoding.public_key_der(point):
            raise OpenSslError("OpenSSL wrote the public key in another form than an uncompressed point")
        return point

    def signer(self, scalar: bytes, point: bytes) -> OpenSslSigner:
        return OpenSslSigner(self._library, scalar, point)

    def verify(self, public_key: bytes, message: bytes, signature: bytes, user_id: bytes) -> bool:
        """Whether the 64-byte signature is valid; False for a malformed key. OpenSslError is never the input's."""
        try:
            key = self._public_key(public_key)
        except ValueError:
            return False
        if self._tables is not None:
            table = self._tables.of(key, public_key)
            if table is not None:
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                return self._tables.curve.verify(table, key.message_digest(user_id, message), r, s)
        return self._verify_once(key.evp, message, signature, user_id)

    def _verify_once(self, key: _Key, message: bytes, signature: bytes, user_id: bytes) -> bool:
        library = self._library
        der = encoding.signature_to_der(signature)
        context = library.context(library.verify_init, key, user_id)
        try:
            verdict: int = library.verify(context, der, len(der), message, len(message))
        finally:
            library.md_ctx_free(context)
        if verdict != 1:
            # A wrong signature leaves errors behind that the next TLS call of this thread would take for
            # its own.
            library.err_clear_error()
        return verdict == 1

    def _parse_public_key(self, public_key: bytes) -> _PublicKey:
        point = sm2_pure.parse_point(public_key)
        if point is None:
            raise ValueError("not an uncompressed point on the SM2 curve")
        return _PublicKey(point, self._library.key(self._library.d2i_public, encoding.public_key_der(public_key)))


def _candidates() -> Iterator[str]:
    """Where a libcrypto may be, the one that this Python itself uses first.

    `ctypes.util.find_library` is not asked: it starts processes on Linux, and on macOS it names a library
    that ends the process when it is loaded.
    """
    hashlib_module = importlib.util.find_spec("_hashlib")
    if hashlib_module is not None and hashlib_module.origin not in (None, "built-in", "frozen"):
        # Symbols are looked up in a library and in those it depends on, so this reaches the OpenSSL behind
        # hashlib, wherever it was installed. (Not on Windows.)
        yield str(hashlib_module.origin)
    if sys.platform == "win32":
        yield from ("libcrypto-3-x64.dll", "libcrypto-3-arm64.dll", "libcrypto-3.dll")
    elif sys.platform == "darwin":
        yield "libcrypto.3.dylib"
        yield from (f"{prefix}/opt/openssl@3/lib/libcrypto.3.dylib" for prefix in ("/opt/homebrew", "/usr/local"))
    else:
        yield from ("libcrypto.so.3", "libcrypto.so.4")


def _proves_itself(backend: OpenSslBackend) -> bool:
    """Some builds lack SM2; and a binding written by hand should show once that it is right."""
    try:
        made = backend.signer(_KNOWN_PRIVATE_KEY, _KNOWN_PUBLIC_KEY).sign(_KNOWN_MESSAGE, b"another id")
        return (
            backend.public_key(_KNOWN_PRIVATE_KEY) == _KNOWN_PUBLIC_KEY
            and backend.verify(_KNOWN_PUBLIC_KEY, _KNOWN_MESSAGE, made, b"another id")
            and backend.verify(_KNOWN_PUBLIC_KEY, _KNOWN_MESSAGE, _KNOWN_SIGNATURE, _KNOWN_USER_ID)
            and not backend.verify(_KNOWN_PUBLIC_KEY, _KNOWN_MESSAGE + b"!", _KNOWN_SIGNATURE, _KNOWN_USER_ID)
        )
    except (OpenSslError, ValueError):
        return False


def _tables_prove_themselves(curve: Curve) -> bool:
    """The deprecated functions show once that they are there, and that they do what they are meant to do."""
    point = sm2_pure.parse_point(_KNOWN_PUBLIC_KEY)
    assert point is not None
    table = curve.table(_KNOWN_PUBLIC_KEY)
    digest = sm2_pure.message_digest(_KNOWN_USER_ID, point, _KNOWN_MESSAGE)
    r, s = int.from_bytes(_KNOWN_SIGNATURE[:32], "big"), int.from_bytes(_KNOWN_SIGNATURE[32:], "big")
    return (
        curve.verify(table, digest, r, s)
        and not curve.verify(table, digest + 1, r, s)
        and not curve.verify(table, digest, s, r)
    )


def load() -> OpenSslBackend | None:
    """The first OpenSSL that proves itself, or None where there is none."""
    for path in _candidates():
        try:
            backend = OpenSslBackend(_Library(path))
        except (OSError, AttributeError):
            continue
        if _proves_itself(backend):
            return backend
    return None
