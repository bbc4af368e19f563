"""A driver that behaves, until the voucher code of `list_available` tells it how to misbehave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARGUMENTS = sys.argv[1:]
OWN = {
    "name": "misbehaving",
    "version": "1",
    "role": "pharmacy",
    "protocol": 1,
    "features": ["list_available", "download", "settle", "missing"],
    "suites": ["ES256"],
    "clock": "told",
}


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


CHILD = """
import fcntl, pathlib, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
pathlib.Path(sys.argv[1] + ".held").touch()
time.sleep(60)
"""


def misbehave(how: str, number: int, args: dict[str, str]) -> None:
    good = {"id": number, "result": {"outcome": "ok", "prescriptions": []}}
    match how:
        case "crash":
            sys.exit(3)
        case "killed":
            os.kill(os.getpid(), 9)
        case "hang":
            time.sleep(60)
        case "garbage":
            print("now listing…\nTraceback: none", flush=True)
            say(good)
        case "binary":
            sys.stdout.buffer.write(b"\xff\xfe\x00\n")
            say(good)
        case "garbage_flood":
            for _ in range(10_000):
                print("x" * 100)
            say(good)
        case "twice":
            say(good)
            say(good)
        case "unknown_id":
            say({"id": number + 1000, "result": {"outcome": "ok"}})
            say(good)
        case "no_id":
            say({"result": {"outcome": "ok"}})
            say(good)
        case "both":
            say(good | {"error": {"code": "crash"}})
        case "neither":
            say({"id": number})
        case "bad_outcome":
            say({"id": number, "result": {"outcome": "perhaps"}})
        case "endless_line":
            try:
                while True:
                    sys.stdout.write("x" * 1_000_000)
                    sys.stdout.flush()
            except BrokenPipeError:
                os._exit(0)
        case "half_line":
            sys.stdout.write('{"id":')
            sys.stdout.flush()
            sys.exit(0)
        case "stderr_flood":
            # In one piece: line by line it would be a test of how fast this machine makes system calls.
            sys.stderr.write("".join(f"line {line} of very much\n" for line in range(200_000)))
            sys.stderr.flush()
            say(good)
        case "unsupported":
            say({"id": number, "error": {"code": "unsupported", "message": "no list here"}})
        case "error":
            say({"id": number, "error": {"code": "crash", "message": "boom"}})
        case "child":
            # It holds the output open after the driver has ended.
            subprocess.Popen([sys.executable, "-c", CHILD, args["lock"]])
            while not Path(args["lock"] + ".held").exists():
                time.sleep(0.01)
            sys.exit(4)
        case "rejected":
            say({"id": number, "result": {"outcome": "rejected", "code": "VCH_EXPIRED"}})
        case "late":
            time.sleep(0.5)
            say(good)
        case _:
            say(good)


def main() -> None:
    if ARGUMENTS[:1] == ["starts"]:
        # So many times, counted in a file, and never again.
        count = Path(ARGUMENTS[2])
        started = len(count.read_text()) if count.exists() else 0
        count.write_text("x" * (started + 1))
        if started >= int(ARGUMENTS[1]):
            sys.exit(5)
    if "not_at_all" in ARGUMENTS:
        print("cannot find my licence", file=sys.stderr)
        sys.exit(1)
    waiting: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        number, op, args = request["id"], request["op"], request["args"]
        if op == "describe":
            say({"id": number, "result": OWN})
        elif op == "configure" and "no_configure" in ARGUMENTS:
            say({"id": number, "result": {"outcome": "rejected", "code": "X"}})
        elif op == "list_available" and args.get("voucher_code") == "reversed":
            # Both answers, the second first.
            waiting.append(number)
            if len(waiting) == 2:
                for one in reversed(waiting):
                    say({"id": one, "result": {"outcome": "ok", "number": waiting.index(one)}})
                waiting.clear()
        elif op == "list_available":
            misbehave(str(args.get("voucher_code")), number, args)
        elif op == "download":
            say({"id": number, "error": {"code": "unsupported", "message": "no download"}})
        else:
            say({"id": number, "result": {"outcome": "ok", "pid": os.getpid()}})
        if op == "shutdown":
            break


main()
