"""Which drivers are run: each one's name, its group, and the command of its program in this directory."""
import gzip
import re
from pathlib import Path
from typing import NamedTuple

from programs import packages

HERE = Path(__file__).resolve().parent
GROUPS = ["python", "node", "debian", "java", "go", "rust", "libpq", "django"]


class Driver(NamedTuple):
    name: str
    group: str
    # `checks` or `writes` follows, and then `more`. In these, {scratch} is a directory for what is built.
    command: list
    more: list = []
    environment: dict = {}
    build: list = []
    # Why it takes no part in the switchover.
    stays: str = ""


def python(name, program, *more):
    return Driver(name, "python", [packages() / "clients-python/bin/python3", "-B", HERE / f"{program}_client.py"], [*more])


def node(name, program, *more):
    modules = {"NODE_PATH": str(packages() / "clients-node/node_modules")}
    return Driver(name, "node", ["node", HERE / f"{program}.js"], [*more], modules)


def debian(name, *command, build=()):
    return Driver(name, "debian", [*command], build=[*build])


def cpp(name, program):
    out = f"{{scratch}}/{program}"
    return debian(name, out, build=["c++", "-std=c++17", "-O0", "-o", out, HERE / f"{program}.cpp", "-lpqxx", "-lpq", "-pthread"])


def java(name, jars):
    """With HikariCP of the same place. Each has classes of its own, as it is compiled with its own driver."""
    path = ":".join(f"{jars}/{jar}.jar" for jar in ("postgresql", "HikariCP", "slf4j-api", "slf4j-nop"))
    classes = f"{{scratch}}/{name.replace(' ', '-')}"
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{classes}:{path}", "Jdbc"]
    return Driver(name, "java", command, build=["javac", "-d", classes, "-cp", path, HERE / "Jdbc.java"])


def go(name, program, library):
    """Debian's Go and its packages, as they are: without modules, which would be fetched."""
    root = packages() / "clients-go/root/usr"
    out = f"{{scratch}}/{program}"
    environment = {
        "GO111MODULE": "off", "GOPATH": str(root / "share/gocode"), "GOTOOLCHAIN": "local", "CGO_ENABLED": "0",
        "GOCACHE": str(packages() / "clients-go/build"), "VERSION": debian_version(root, library),
    }  # fmt: skip
    compiler = next(iter(sorted(root.glob("lib/go-1.*/bin/go"))), "go")
    return Driver(name, "go", [out], [], environment, [compiler, "build", "-o", out, HERE / "go/harness.go", HERE / f"go/{program}.go"])


def debian_version(root, library):
    """Of an unpacked package: its list of changes begins with it."""
    changes = root / f"share/doc/{library}/changelog.Debian.gz"
    if not changes.exists():
        return "?"
    return re.search(r"\(([\d.]+)", gzip.open(changes, "rt").readline()).group(1)


def rust(name, crate):
    """One program with all of them, built in the cache."""
    target, manifest = packages() / "clients-rust", HERE / "rust/Cargo.toml"
    lock = (HERE / "rust/Cargo.lock").read_text()
    version = re.search(rf'name = "{crate}"\nversion = "(.+)"', lock).group(1)
    build = ["cargo", "build", "--quiet", "--locked", "--manifest-path", manifest, "--target-dir", target]
    return Driver(name, "rust", [target / "debug/clients"], [crate], {"VERSION": version}, build)


def libpq(version):
    """psql and pgbench of this version, as `scripts/test-versions` has them."""
    return Driver(f"libpq {version}: psql, pgbench", "libpq", ["/usr/bin/python3", "-B", HERE / "libpq_client.py"], [version])


DRIVERS = [
    python("psycopg2", "psycopg2"),
    python("psycopg 3, psycopg_pool", "psycopg3"),
    python("asyncpg", "asyncpg"),
    python("pg8000", "pg8000"),
    python("psqlpy", "psqlpy"),
    python("ADBC for Python", "adbc"),
    python("SQLAlchemy on psycopg2", "sqlalchemy", "psycopg2"),
    python("SQLAlchemy on psycopg 3", "sqlalchemy", "psycopg"),
    python("Django on psycopg 3", "django"),
    node("node pg, pg-pool", "pg"),
    node("knex on pg", "knex"),
    node("postgres.js", "postgres_js"),
    node("drizzle on postgres.js", "drizzle"),
    debian("DBD::Pg", "perl", HERE / "dbd_pg.pl"),
    debian("PHP PDO", "php", HERE / "pdo.php"),
    debian("ruby-pg", "ruby", HERE / "ruby_pg.rb"),
    debian("psqlODBC, pyodbc", "/usr/bin/python3", "-B", HERE / "odbc_client.py"),
    cpp("libpqxx", "libpqxx"),
    Driver("pgloader", "debian", ["/usr/bin/python3", "-B", HERE / "pgloader_client.py"], stays="each load is one COPY"),
    java("pgjdbc 42.5, HikariCP", "/usr/share/java"),
    java("pgjdbc 42.7, HikariCP", packages() / "clients-java/root/usr/share/java"),
    go("pgx, pgxpool", "pgx", "golang-github-jackc-pgx-v5-dev"),
    go("lib/pq, database/sql", "pq", "golang-github-lib-pq-dev"),
    rust("tokio-postgres, deadpool", "tokio-postgres"),
    rust("sqlx", "sqlx"),
    rust("diesel, r2d2", "diesel"),
    libpq("15"),
    libpq("18"),
    libpq("19"),
]

# Not a driver: it has a line of its own in the output, and no row in the table.
SUITE = Driver("Django's own tests", "django", [packages() / "clients-python/bin/python3", "-B", HERE / "django_suite.py"],
               [packages() / "clients-django"])  # fmt: skip
