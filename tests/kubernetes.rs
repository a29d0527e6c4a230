//! The manifests in config/kubernetes fit together, and the configuration in them is one that the
//! router accepts in such a pod.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// How long it may take until no node of the cluster sends clients to a pod that ends.
const ENDPOINTS_LAG: u64 = 5;

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config/kubernetes")
        .join(name);
    parse(&fs::read_to_string(path).unwrap())
}

fn parse(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// A value inside another one, by a JSON pointer.
#[track_caller]
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value
        .pointer(pointer)
        .unwrap_or_else(|| panic!("there is no {pointer}"))
}

#[track_caller]
fn number(value: &Value, pointer: &str) -> u64 {
    at(value, pointer).as_u64().unwrap()
}

fn deployment() -> Value {
    read("deployment.yaml")
}

fn container(deployment: &Value) -> Value {
    let containers = at(deployment, "/spec/template/spec/containers")
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 1);
    containers[0].clone()
}

fn configuration_text() -> String {
    let map = read("configmap.yaml");
    at(&map, "/data/trunkline.yaml").as_str().unwrap().to_owned()
}

fn configuration() -> Value {
    parse(&configuration_text())
}

fn seconds(text: &Value) -> u64 {
    text.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
}

/// A list of objects, as what two of their keys say.
fn pairs(list: &Value, key: &str, value: &str) -> BTreeMap<String, Value> {
    let list = list.as_array().unwrap().iter();
    list.map(|each| (each[key].as_str().unwrap().to_owned(), each[value].clone()))
        .collect()
}

fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
        Value::Object(map) => map.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// Every file that the configuration names.
fn files(configuration: &Value) -> BTreeSet<String> {
    let mut found = Vec::new();
    texts(configuration, &mut found);
    found
        .into_iter()
        .filter(|text| text.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_manifest_is_what_its_name_says_and_has_the_label() {
    let mut names: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        ("configmap.yaml", "v1", "ConfigMap"),
        ("deployment.yaml", "apps/v1", "Deployment"),
        ("poddisruptionbudget.yaml", "policy/v1", "PodDisruptionBudget"),
        // By its name it is not applied with the others.
        ("secret.yaml.example", "v1", "Secret"),
        ("service-http.yaml", "v1", "Service"),
        ("service.yaml", "v1", "Service"),
    ];
    assert_eq!(names, expected.map(|(name, ..)| name));
    for (name, version, kind) in expected {
        let manifest = read(name);
        assert_eq!(manifest["apiVersion"], version, "{name}");
        assert_eq!(manifest["kind"], kind, "{name}");
        assert_eq!(
            manifest["metadata"]["labels"]["app.kubernetes.io/name"], "trunkline",
            "{name}"
        );
    }
}

#[test]
fn selectors_find_the_pods() {
    let deployment = deployment();
    let labels = at(&deployment, "/spec/template/metadata/labels");
    assert_eq!(at(&deployment, "/spec/selector/matchLabels"), labels);
    assert_eq!(at(&read("service.yaml"), "/spec/selector"), labels);
    assert_eq!(at(&read("service-http.yaml"), "/spec/selector"), labels);
    let budget = read("poddisruptionbudget.yaml");
    assert_eq!(at(&budget, "/spec/selector/matchLabels"), labels);
    let spread = at(&deployment, "/spec/template/spec/topologySpreadConstraints/0");
    assert_eq!(at(spread, "/labelSelector/matchLabels"), labels);
}

#[test]
fn a_router_is_left_whatever_is_planned() {
    let deployment = deployment();
    let replicas = number(&deployment, "/spec/replicas");
    let budget = number(&read("poddisruptionbudget.yaml"), "/spec/maxUnavailable");
    assert!(
        replicas >= 2 && budget >= 1 && budget < replicas,
        "{replicas} {budget}"
    );
    let update = at(&deployment, "/spec/strategy/rollingUpdate");
    assert_eq!(*update, json!({"maxSurge": 1, "maxUnavailable": 0}));
}

#[test]
fn the_ports_are_those_of_the_configuration() {
    let configuration = configuration();
    let mut listening = pairs(at(&configuration, "/listeners"), "name", "address");
    listening.insert("http".to_owned(), at(&configuration, "/http/address").clone());
    let listening: BTreeMap<_, u64> = listening
        .into_iter()
        .map(|(name, address)| {
            let port = address
                .as_str()
                .unwrap()
                .strip_prefix("*:")
                .unwrap()
                .parse()
                .unwrap();
            (name, port)
        })
        .collect();
    let expected = [("http", 6434), ("read-only", 6433), ("read-write", 6432)];
    assert_eq!(
        listening,
        expected.map(|(name, port)| (name.to_owned(), port)).into()
    );

    let container = container(&deployment());
    let ports = pairs(at(&container, "/ports"), "name", "containerPort");
    let same =
        |ports: &BTreeMap<String, Value>| ports.iter().all(|(name, port)| *port == json!(listening[name]));
    assert!(ports.len() == 3 && same(&ports), "{ports:?}");

    let mut served = BTreeMap::new();
    for (name, count) in [("service.yaml", 2), ("service-http.yaml", 1)] {
        let service = read(name);
        let ports = at(&service, "/spec/ports");
        assert_eq!(ports.as_array().unwrap().len(), count, "{name}");
        // By the ports' names, so that they are those of the container.
        for (name, target) in pairs(ports, "name", "targetPort") {
            assert_eq!(target, json!(name));
        }
        served.extend(pairs(ports, "name", "port"));
    }
    assert!(served.len() == 3 && same(&served), "{served:?}");
}

#[test]
fn cancel_requests_of_a_client_go_where_its_sessions_are() {
    let service = read("service.yaml");
    assert_eq!(at(&service, "/spec/sessionAffinity"), "ClientIP");
    assert!(configuration().get("peers").is_none());
}

#[test]
fn probes_ask_whether_it_lives_and_whether_it_is_ready() {
    let container = container(&deployment());
    for (probe, path) in [
        ("startupProbe", "/connection/is-live"),
        ("livenessProbe", "/connection/is-live"),
        ("readinessProbe", "/connection/is-ready"),
    ] {
        let asked = at(&container, &format!("/{probe}/httpGet"));
        assert_eq!(*asked, json!({"path": path, "port": "http"}), "{probe}");
    }
}

#[test]
fn a_pod_serves_until_nobody_comes_and_has_the_time_to_end() {
    let deployment = deployment();
    let configuration = configuration();
    let delay = seconds(at(&configuration, "/shutdown/delay"));
    let grace = seconds(at(&configuration, "/shutdown/grace"));
    let container = container(&deployment);
    let noticed = number(&container, "/readinessProbe/periodSeconds")
        * number(&container, "/readinessProbe/failureThreshold");
    assert!(delay >= noticed + ENDPOINTS_LAG, "{delay} {noticed}");
    let killed = number(&deployment, "/spec/template/spec/terminationGracePeriodSeconds");
    assert!(killed >= delay + grace + 5, "{killed} {delay} {grace}");
}

#[test]
fn the_container_has_no_rights_and_its_memory_is_limited() {
    let deployment = deployment();
    let pod = at(&deployment, "/spec/template/spec");
    let context = at(pod, "/securityContext");
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
    let dockerfile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap();
    let user = format!("USER {}:{}\n", context["runAsUser"], context["runAsGroup"]);
    assert!(
        dockerfile.contains(&user),
        "the image has another user than {user}"
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = container(&deployment);
    let expected = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    assert_eq!(*at(&container, "/securityContext"), expected);
    for limited in [
        "/resources/requests/cpu",
        "/resources/requests/memory",
        "/resources/limits/memory",
    ] {
        at(&container, limited);
    }
    assert_eq!(
        at(&container, "/resources/requests/cpu").as_str().unwrap(),
        number(&configuration(), "/workers").to_string()
    );
    let image = at(&container, "/image").as_str().unwrap();
    assert!(
        image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))),
        "{image}"
    );
}

#[test]
fn every_file_is_in_a_volume_and_what_is_written_is_in_one_that_can_be() {
    let deployment = deployment();
    let pod = at(&deployment, "/spec/template/spec");
    let volumes = at(pod, "/volumes").as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
    let container = container(&deployment);
    let mounts = at(&container, "/volumeMounts").as_array().unwrap();
    let mounted = |path: &str| {
        let mut inside = mounts.iter().filter(|mount| {
            let mount = mount["mountPath"].as_str().unwrap();
            Path::new(path).starts_with(mount)
        });
        let mount = inside.next().unwrap_or_else(|| panic!("{path} is in no volume"));
        assert!(inside.next().is_none(), "{path} is in two volumes");
        (volume(mount["name"].as_str().unwrap()), mount["readOnly"] == true)
    };
    let read_write: BTreeSet<_> = mounts
        .iter()
        .filter(|mount| mount["readOnly"] != true)
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    assert_eq!(read_write, BTreeSet::from(["/run/trunkline"]));

    let arguments = at(&container, "/args");
    assert_eq!(*arguments, json!(["run", "-c", "/etc/trunkline/trunkline.yaml"]));
    let (volume, read_only) = mounted("/etc/trunkline/trunkline.yaml");
    assert_eq!(
        volume["configMap"]["name"],
        read("configmap.yaml")["metadata"]["name"]
    );
    assert!(read_only);

    let secret = read("secret.yaml.example");
    let mut keys: BTreeSet<_> = at(&secret, "/stringData")
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    for file in files(&configuration()) {
        let (volume, read_only) = mounted(&file);
        if file == configuration()["control_socket"].as_str().unwrap() {
            assert!(volume["emptyDir"].is_object() && !read_only, "{file}");
            continue;
        }
        assert_eq!(
            volume["secret"]["secretName"], secret["metadata"]["name"],
            "{file}"
        );
        let name = Path::new(&file).file_name().unwrap().to_str().unwrap();
        assert!(keys.remove(name), "the secret has no {name}");
        // For the group alone, which is the router's.
        assert_eq!(volume["secret"]["defaultMode"], 0o440);
        assert_eq!(
            pod["securityContext"]["fsGroup"],
            pod["securityContext"]["runAsGroup"]
        );
    }
    assert!(keys.is_empty(), "nothing uses {keys:?}");
}

#[test]
fn the_router_accepts_the_configuration() {
    let pod = tempfile::tempdir().unwrap();
    let place = |path: &str| format!("{}{path}", pod.path().display());
    let key = rcgen::KeyPair::generate().unwrap();
    let mut of_clients = rcgen::CertificateParams::new(["trunkline".to_owned()]).unwrap();
    of_clients.is_ca = rcgen::IsCa::NoCa;
    let mut of_servers = of_clients.clone();
    of_servers.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let [certificate, authority] =
        [of_clients, of_servers].map(|params| params.self_signed(&key).unwrap().pem());
    let mut text = configuration_text();
    for file in files(&configuration()) {
        let to = place(&file);
        fs::create_dir_all(Path::new(&to).parent().unwrap()).unwrap();
        text = text.replace(&file, &to);
        let contents = match Path::new(&file).file_name().unwrap().to_str().unwrap() {
            "tls.crt" => certificate.clone(),
            "ca.crt" => authority.clone(),
            "tls.key" => key.serialize_pem(),
            "service-account.password" => "password".to_owned(),
            _ => continue,
        };
        fs::write(&to, contents).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o440)).unwrap();
    }
    let path = place("/trunkline.yaml");
    fs::write(&path, text).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(["check", "-c", &path])
        .output()
        .unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
}
