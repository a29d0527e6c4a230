"""Django's ORM: persistent connections, one for each thread, and its own pool; transactions, savepoints, cursors of the
server. Run with HOST, PORT, SCHEMA and TASKS; see tests/it/pooling/drivers.rs."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import django
from django.conf import settings

HOST, PORT, SCHEMA = os.environ["HOST"], os.environ["PORT"], os.environ["SCHEMA"]
TASKS, LINES = int(os.environ["TASKS"]), 20


def database(**more):
    options = {"sslmode": "disable", "server_side_binding": True, "prepare_threshold": 0, **more.pop("OPTIONS", {})}
    return {"ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PORT": PORT, "NAME": "app", "USER": "app",
            "PASSWORD": "app", "OPTIONS": options, **more}


settings.configure(
    DATABASES={
        "default": database(CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True),
        "pooled": database(CONN_MAX_AGE=0, OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 60}}),
    },
    USE_TZ=True, TIME_ZONE="UTC")
django.setup()

from django.db import DatabaseError, IntegrityError, close_old_connections, connections, models, transaction  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402


class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    amount = models.BigIntegerField()

    class Meta:
        app_label, db_table, managed = "money", "account", False


class Entry(models.Model):
    id = models.BigAutoField(primary_key=True)
    task = models.IntegerField()
    text = models.TextField()

    class Meta:
        app_label, db_table, managed = "money", "entry", False


def settle(connection, **_):
    with connection.cursor() as cursor:
        cursor.execute(f"SET search_path = {SCHEMA}")
        cursor.execute(f"SET app.schema = '{SCHEMA}'")


connection_created.connect(settle)


def own(using):
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT current_setting('app.schema'), (SELECT name FROM place), current_setting('statement_timeout'), "
                       "current_setting('TimeZone')")
        row = cursor.fetchone()
        assert row == (SCHEMA, SCHEMA, "0", "UTC"), row


def transfer(using, task):
    ids = sorted((task % 8 + 1, (task + 3) % 8 + 1))
    accounts = Account.objects.using(using)
    with transaction.atomic(using=using):
        first, second = accounts.filter(id__in=ids).order_by("id").select_for_update()
        assert [first.id, second.id] == ids
        accounts.filter(id=first.id).update(amount=models.F("amount") - 1)
        try:
            with transaction.atomic(using=using):
                accounts.filter(id=first.id).update(amount=models.F("amount") - 1000000)
            raise AssertionError("no error")
        except IntegrityError:
            pass
        accounts.filter(id=second.id).update(amount=models.F("amount") + 1)


def errors(using, task):
    try:
        with transaction.atomic(using=using):
            Entry.objects.using(using).create(task=task, text="of a transaction that fails")
            Account.objects.using(using).create(id=1, amount=1)
        raise AssertionError("no error")
    except IntegrityError:
        pass
    try:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '20ms'")
            cursor.execute("SELECT pg_sleep(%s)", [30])
        raise AssertionError("no time-out")
    except DatabaseError as error:
        assert error.__cause__.sqlstate == "57014", error


def entries(using, task):
    texts = sorted(f"{number} ü" for number in range(LINES))
    mine = Entry.objects.using(using).filter(task=task)
    Entry.objects.using(using).bulk_create([Entry(task=task, text=text) for text in texts], batch_size=7)
    # Outside of transactions this is a cursor WITH HOLD, which the connection keeps until it is closed.
    assert sorted(entry.text for entry in mine.iterator(chunk_size=5)) == texts
    with transaction.atomic(using=using):
        assert sorted(entry.text for entry in mine.iterator(chunk_size=5)) == texts
    assert mine.order_by("id").last().text in texts
    entry, created = Entry.objects.using(using).get_or_create(task=task, text=texts[0])
    assert not created and entry.task == task


def request(using, task, part):
    close_old_connections()
    own(using)
    part(using, task)
    own(using)
    close_old_connections()


def work(task):
    for part in (transfer, errors, entries, transfer):
        request("default", task, part)
        request("pooled", TASKS + task, part)


barrier = threading.Barrier(8)


def hang_up(_):
    """A thread's connection is its own: each thread closes one."""
    barrier.wait(60)
    connections.close_all()


with ThreadPoolExecutor(8) as threads:
    list(threads.map(work, range(TASKS)))
    list(threads.map(hang_up, range(8)))
assert Entry.objects.count() == 2 * TASKS * LINES
connections["pooled"].close_pool()
connections.close_all()
print("done")
