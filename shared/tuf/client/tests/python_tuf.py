"""The other side of `interop_python_tuf.rs`: a repository and a client that are python-tuf's own.

    python_tuf.py write FOLDER consistent|plain ed25519|mixed    a repository with two releases, the second one hidden
    python_tuf.py release FOLDER                                  shows the second release
    python_tuf.py refresh URL ROOT_FILE FOLDER NAME...            refreshes and downloads with `ngclient`
"""

import datetime
import os
import sys
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient import Updater

EXPIRES = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(days=30)


class Repository:
    def __init__(self, folder, consistent, kinds):
        self.folder = folder
        self.consistent = consistent
        self.kinds = kinds
        self.made = 0

    def signer(self):
        make = self.kinds[self.made % len(self.kinds)]
        self.made += 1
        return make()

    def put(self, path, data):
        path = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def publish(self, role, signed, signers):
        """Returns what the role above says about the file."""
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        versioned = role == "root" or (self.consistent and role != "timestamp")
        prefix = f"{signed.version}." if versioned else ""
        self.put(f"metadata/{prefix}{quote(role, '')}.json", data)
        return MetaFile.from_data(signed.version, data, ["sha256", "sha512"])

    def target(self, targets, name, data, algorithms):
        file = TargetFile.from_data(name, data, algorithms)
        targets.targets[name] = file
        folder, _, base = name.rpartition("/")
        prefix = f"{file.hashes[algorithms[0]]}." if self.consistent else ""
        self.put(f"targets/{folder}/{prefix}{base}", data)


def write(folder, consistent, kind):
    mixed = [
        CryptoSigner.generate_ecdsa,
        CryptoSigner.generate_rsa,
        CryptoSigner.generate_ed25519,
        lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
    ]
    kinds = mixed if kind == "mixed" else [CryptoSigner.generate_ed25519]
    repository = Repository(folder, consistent == "consistent", kinds)
    signer = repository.signer

    # Three roots: two of three people sign, one of them is replaced, then every online key.
    people = [signer(), signer(), signer()]
    online = {role: signer() for role in ("timestamp", "snapshot", "targets")}
    root = Root(expires=EXPIRES, consistent_snapshot=repository.consistent)
    root.unrecognized_fields["x-later"] = {"b": [1, None, "é"], "a": False}
    for person in people:
        root.add_key(person.public_key, "root")
    root.roles["root"].threshold = 2
    for role, key in online.items():
        root.add_key(key.public_key, role)
    repository.publish("root", root, people[:2])

    root.version = 2
    replaced, people[0] = people[0], signer()
    root.revoke_key(replaced.public_key.keyid, "root")
    root.add_key(people[0].public_key, "root")
    repository.publish("root", root, [replaced, *people])

    root.version = 3
    for role in ("timestamp", "snapshot"):
        root.revoke_key(online[role].public_key.keyid, role)
        online[role] = signer()
        root.add_key(online[role].public_key, role)
    repository.publish("root", root, people[1:])

    # targets → team/camera → lens (terminating), and sixteen bins by digest of the name.
    camera, lens, bins = signer(), signer(), signer()
    everything = dict(
        targets=(Targets(expires=EXPIRES), [online["targets"]]),
        camera=(Targets(expires=EXPIRES), [camera]),
        lens=(Targets(expires=EXPIRES), [lens]),
        bins=(Targets(expires=EXPIRES), [bins]),
    )
    top, middle = everything["targets"][0], everything["camera"][0]
    top.delegations = Delegations({}, roles={})
    roles = top.delegations.roles
    roles["team/camera"] = DelegatedRole("team/camera", [], 1, False, ["camera/*", "camera/*/*"])
    roles["bins"] = DelegatedRole("bins", [], 1, False, path_hash_prefixes=[f"{bin:x}" for bin in range(16)])
    top.add_key(camera.public_key, "team/camera")
    top.add_key(bins.public_key, "bins")
    middle.delegations = Delegations({}, roles={})
    middle.delegations.roles["lens"] = DelegatedRole("lens", [], 1, True, ["camera/lens-?/*"])
    middle.add_key(lens.public_key, "lens")

    for version in (1, 2):
        # The second release waits under a name that nobody asks for.
        repository.folder = folder if version == 1 else os.path.join(folder, "second")
        content = f"version {version}".encode()
        repository.target(everything["targets"][0], "model", content, ["sha256"])
        repository.target(everything["camera"][0], "camera/model", content, ["sha512"])
        repository.target(everything["lens"][0], "camera/lens-1/model", content, ["sha256", "sha512"])
        repository.target(everything["bins"][0], "elsewhere/model", content, ["sha256"])
        # What the terminating role does not have, nobody after it may have.
        repository.target(everything["bins"][0], "camera/lens-2/hidden", content, ["sha256"])
        snapshot = Snapshot(version=version, expires=EXPIRES)
        for role, file in (("targets", "targets"), ("camera", "team/camera"), ("lens", "lens"), ("bins", "bins")):
            signed, signers = everything[role]
            signed.version = version
            snapshot.meta[f"{file}.json"] = repository.publish(file, signed, signers)
        listed = repository.publish("snapshot", snapshot, [online["snapshot"]])
        timestamp = Timestamp(version=version, expires=EXPIRES, snapshot_meta=listed)
        repository.publish("timestamp", timestamp, [online["timestamp"]])


def release(folder):
    second = os.path.join(folder, "second")
    for place, _, files in os.walk(second):
        into = os.path.join(folder, os.path.relpath(place, second))
        os.makedirs(into, exist_ok=True)
        for file in files:
            os.replace(os.path.join(place, file), os.path.join(into, file))


def refresh(url, root_file, folder, *names):
    metadata, targets = os.path.join(folder, "metadata"), os.path.join(folder, "targets")
    os.makedirs(metadata, exist_ok=True)
    os.makedirs(targets, exist_ok=True)
    with open(root_file, "rb") as file:
        root = file.read()
    updater = Updater(metadata, f"{url}/metadata/", targets, f"{url}/targets/", bootstrap=root)
    updater.refresh()
    for name in names:
        found = updater.get_targetinfo(name)
        if found is None:
            sys.exit(f"no role signs for {name}")
        updater.download_target(found)


if __name__ == "__main__":
    {"write": write, "release": release, "refresh": refresh}[sys.argv[1]](*sys.argv[2:])
