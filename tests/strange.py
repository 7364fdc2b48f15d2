"""What strangers may send: objects that run a program when unpickled, and archives of anything."""

import io
import os
import tarfile


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def pack(path, members):
    """Write an archive of contents by name; a TarInfo in a content's place goes in as it is."""
    packed = {} if path.suffix == ".tar" else {"compresslevel": 1}
    with tarfile.open(path, "w:gz" if packed else "w", **packed) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
