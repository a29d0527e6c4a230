"""Patroni's groups for Citus: each group is a cluster of its own in etcd, below `SCOPE/GROUP/`.

Citus itself is in no registry that the tests use. Patroni runs in its mode for Citus, with an extension of the same name
that has only what Patroni calls.
"""
import shutil

import cluster

# PostgreSQL loads any module under the name that Patroni wants first in shared_preload_libraries.
MODULE = "auto_explain.so"
CONTROL = "default_version = '1'\nrelocatable = false\nschema = pg_catalog\n"
FUNCTIONS = """
CREATE TABLE public.pg_dist_node (nodeid serial, groupid int, nodename text, nodeport int, noderole text);
CREATE TABLE public.pg_dist_authinfo (nodeid int, rolename name, authinfo text);
ALTER TABLE public.pg_dist_node SET SCHEMA pg_catalog;
ALTER TABLE public.pg_dist_authinfo SET SCHEMA pg_catalog;
CREATE FUNCTION citus_add_node(host text, port int, node_group int, role text, cluster text) RETURNS int LANGUAGE sql
    RETURN 1;
CREATE FUNCTION citus_set_coordinator_host(host text, port int, role text, cluster text) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION citus_update_node(node int, host text, port int, force bool, cooldown int) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION citus_remove_node(host text, port int) RETURNS void LANGUAGE sql AS '';
"""


# The group of node1, node2, node3: the coordinator, and two members of one group of workers.
GROUPS = [0, 1, 1]


class Groups(cluster.Cluster):
    """The members of two groups with one etcd."""

    def stub(self):
        """The directory of the extension that stands for Citus's."""
        directory = self.dir / "citus"
        if not directory.exists():
            (directory / "extension").mkdir(parents=True)
            module = next(self.bindir().parent.glob(f"lib/{MODULE}"))
            shutil.copy(module, directory / "citus.so")
            (directory / "extension" / "citus.control").write_text(CONTROL)
            (directory / "extension" / "citus--1.sql").write_text(FUNCTIONS)
            paths = f"extension_control_path = '{directory}:$system'\ndynamic_library_path = '{directory}:$libdir'\n"
            (directory / "postgresql.conf").write_text(paths)
            for path in (directory, *directory.rglob("*")):
                path.chmod(0o755)
        return directory

    def patroni_config(self, node):
        config = super().patroni_config(node)
        config["citus"] = {"group": GROUPS[self.nodes.index(node)], "database": "citus"}
        config["postgresql"]["custom_conf"] = str(self.stub() / "postgresql.conf")
        return config

    def etcd_has(self, key):
        return super().etcd_has(f"0/{key}")

    def members_of(self, number):
        return [node for node, group in zip(self.nodes, GROUPS, strict=True) if group == number]

    def leader_of(self, number):
        return next((node for node in self.members_of(number) if cluster.http(f"{node.rest}/primary")[0] == 200), None)

    def missing(self):
        """A leader in each group, which the others follow."""
        for number in set(GROUPS):
            leader = self.leader_of(number)
            if not leader:
                return f"a leader of group {number}"
            for node in self.members_of(number):
                if node is not leader and cluster.http(f"{node.rest}/replica")[0] != 200:
                    return f"{node.name} to follow {leader.name}"
        return None

    def group(self, number):
        """What a router before one group has to know."""
        about = self.describe()
        names = [node.name for node in self.members_of(number)]
        nodes = [node for node in about["nodes"] if node["name"] in names]
        return about | {"nodes": nodes, "scope": f"{about['scope']}/{number}"}
