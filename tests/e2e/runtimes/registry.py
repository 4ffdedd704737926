"""`registry.py DIRECTORY URL` makes three package registries of plain files in it, each with a package `greeting`, that will be served at
the URL: for apt below `apt`, for pip below `pip`, for npm below `npm`."""
import base64, hashlib, io, json, os, subprocess, sys, tarfile, tempfile, zipfile

place, url = sys.argv[1:]


def write(name, data):
    path = os.path.join(place, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


def apt():
    control = "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.test>\nDescription: a greeting\n"
    with tempfile.TemporaryDirectory() as tree:
        os.mkdir(f"{tree}/DEBIAN")
        os.makedirs(f"{tree}/usr/share/greeting")
        for name, text in (("DEBIAN/control", control), ("usr/share/greeting/text", "hello\n")):
            with open(f"{tree}/{name}", "w") as file:
                file.write(text)
        os.makedirs(f"{place}/apt")
        package = f"{place}/apt/greeting.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True, stdout=subprocess.DEVNULL)
    with open(package, "rb") as file:
        data = file.read()
    index = f"{control}Filename: apt/greeting.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    write("apt/Packages", index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    write("apt/Release", f"Suite: apt/\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {len(index)} Packages\n")


def pip():
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("greeting.py", "text = 'hello'\n")
        info = "greeting-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"greeting.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    name = "greeting-1.0-py3-none-any.whl"
    write(f"pip/greeting/{name}", wheel.getvalue())
    digest = hashlib.sha256(wheel.getvalue()).hexdigest()
    write("pip/greeting/index.html", f'<!DOCTYPE html><html><body><a href="{name}#sha256={digest}">{name}</a></body></html>')


def npm():
    package = {"name": "greeting", "version": "1.0.0", "main": "index.js"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in (("package.json", json.dumps(package)), ("index.js", "module.exports = 'hello'\n")):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    write("npm/greeting-1.0.0.tgz", archive.getvalue())
    digest = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    package["dist"] = {"tarball": f"{url}/npm/greeting-1.0.0.tgz", "integrity": f"sha512-{digest}"}
    write("npm/greeting", json.dumps({"name": "greeting", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package}}))


apt()
pip()
npm()
