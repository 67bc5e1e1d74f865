#!/usr/bin/env python3
"""Packs files into an image archive of one layer (OCI image layout), the same
bytes for the same files: no engine, no registry.

Usage: image.py OUT.tar NAME:TAG[,NAME:TAG...] [--user UID] [--entrypoint PROGRAM] FILE...

FILE is SOURCE=PATH (a link is followed), PATH->TARGET (makes a link) or PATH/ (a folder).
"""
import argparse
import hashlib
import io
import json
import os
import tarfile

EPOCH = "1970-01-01T00:00:00Z"


def layer(files):
    """A tar of the files, with the folders they are in."""
    buffer, folders = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def folder(path, mode=0o755):
            path = path.strip("/")
            if not path or path in folders:
                return
            folder(os.path.dirname(path))
            folders.add(path)
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)

        def file(path, content, mode=0o644):
            folder(os.path.dirname(path))
            entry = tarfile.TarInfo(path.strip("/"))
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))

        folder("tmp", 0o1777)
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n")
        file("etc/group", b"root:x:0:\nnonroot:x:65532:\n")
        for item in files:
            if "->" in item:
                path, target = item.split("->")
                folder(os.path.dirname(path))
                entry = tarfile.TarInfo(path.strip("/"))
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
            elif "=" in item:
                source, path = item.split("=")
                with open(source, "rb") as content:
                    file(path, content.read(), os.stat(source).st_mode & 0o777)
            else:
                folder(item)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("names")
    parser.add_argument("--user", default="")
    parser.add_argument("--entrypoint", default="")
    parser.add_argument("files", nargs="*")
    args = parser.parse_intermixed_args()

    blobs = {}

    def blob(content, kind):
        if not isinstance(content, bytes):
            content = json.dumps(content, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    tar = blob(layer(args.files), "application/vnd.oci.image.layer.v1.tar")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    run = {"Env": [path], "WorkingDir": "/"}
    if args.user:
        run["User"] = args.user
    if args.entrypoint:
        run["Entrypoint"] = [args.entrypoint]
    config = blob(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": EPOCH,
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]},
            "history": [{"created": EPOCH}],
        },
        "application/vnd.oci.image.config.v1+json",
    )
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [tar]}, kind)
    names = args.names.split(",")
    entries = [
        {
            **manifest,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1],
            },
        }
        for name in names
    ]
    with tarfile.open(args.out, "w") as out:

        def put(path, content):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            out.addfile(entry, io.BytesIO(content))

        put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for digest, content in blobs.items():
            put(f"blobs/sha256/{digest}", content)
        put("index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


if __name__ == "__main__":
    main()
