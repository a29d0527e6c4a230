"""A part of Django's own test suite, on psycopg 3: what depends on the connection. See `run.py`."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

LABELS = [
    "backends", "transactions", "transaction_hooks", "select_for_update", "basic", "bulk_create", "get_or_create", "postgres_tests",
    "introspection", "inspectdb", "schema", "db_functions", "datatypes", "indexes", "constraints", "raw_query", "timezones",
]  # fmt: skip
SETTINGS = """
import os
_place = {
    "ENGINE": "django.db.backends.postgresql", "HOST": os.environ["HOST"], "PORT": os.environ["PORT"], "USER": "app",
    "PASSWORD": "app", "OPTIONS": {"sslmode": "verify-full", "sslrootcert": os.environ["CA"]},
}
DATABASES = {"default": _place | {"NAME": "django"}, "other": _place | {"NAME": "django_other"}}
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""


def main():
    source = Path(sys.argv[2])
    scratch = Path.cwd()
    (scratch / "suite_settings.py").write_text(SETTINGS)
    command = [sys.executable, "-B", source / "tests/runtests.py", "--settings=suite_settings", "--parallel=1", "--noinput", "-v1", *LABELS]
    environment = os.environ | {"PYTHONPATH": f"{scratch}:{source}"}
    said = subprocess.run(command, cwd=source / "tests", env=environment, capture_output=True, text=True, timeout=1500).stderr
    count = re.search(r"^Ran (\d+) tests? in", said, re.M)
    bad = sorted(set(re.findall(r"^(?:FAIL|ERROR): (.+)$", said, re.M)))
    print(json.dumps({"tests": int(count.group(1)) if count else 0, "failed": bad, "end": said[-300:]}))


main()
