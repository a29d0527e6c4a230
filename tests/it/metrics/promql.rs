//! What a query of Prometheus asks for: the names of metrics and labels in it. Not a parser of
//! the language, which `promtool` has; it stops at what it does not know.

/// A metric, with its conditions: label, operator, value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    pub conditions: Vec<(String, String, String)>,
}

/// What an expression asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub selectors: Vec<Selector>,
    /// Labels by which it groups and joins.
    pub groups: Vec<String>,
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 4] = ["and", "or", "unless", "bool"];
const FUNCTIONS: [&str; 13] = [
    "changes",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "min_over_time",
    "rate",
    "sum",
    "time",
    "vector",
    "label_values",
    "max_over_time",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    /// `=`, `!=`, `=~`, `!~`, or one other character.
    Sign(String),
}

fn tokens(expression: &str) -> Vec<Token> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = expression;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let length = |keep: &dyn Fn(char) -> bool| rest.find(|c| !keep(c)).unwrap_or(rest.len());
        let taken = if first.is_whitespace() {
            1
        } else if first == '"' {
            let end = rest[1..].find('"').expect("a text has an end") + 2;
            tokens.push(Token::Text(rest[1..end - 1].to_owned()));
            end
        } else if first == '$' || first.is_ascii_digit() {
            // A variable of the dashboard, a number, a duration.
            1 + rest[1..]
                .find(|c| !is_name(c) && c != '.')
                .unwrap_or(rest.len() - 1)
        } else if is_name(first) {
            let end = length(&is_name);
            tokens.push(Token::Name(rest[..end].to_owned()));
            end
        } else {
            let operator = ["=~", "!~", "!=", "=="]
                .iter()
                .find(|sign| rest.starts_with(**sign));
            let sign = operator.map_or_else(|| first.to_string(), |sign| (*sign).to_owned());
            tokens.push(Token::Sign(sign));
            operator.map_or(first.len_utf8(), |sign| sign.len())
        };
        rest = &rest[taken..];
    }
    tokens
}

fn is_sign(token: Option<&Token>, sign: &str) -> bool {
    matches!(token, Some(Token::Sign(found)) if found == sign)
}

/// What `expression` asks for; also of `label_values(metric, label)`, as dashboards' variables have
/// it.
pub fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let all = tokens(expression);
    let mut at = 0;
    let mut is_variable = false;
    while at < all.len() {
        let next = all.get(at + 1);
        match &all[at] {
            Token::Name(name) if GROUPING.contains(&&**name) => {
                if is_sign(next, "(") {
                    at += 2;
                    while let Some(Token::Name(label)) = all.get(at) {
                        asked.groups.push(label.clone());
                        at += if is_sign(all.get(at + 1), ",") { 2 } else { 1 };
                    }
                    assert!(is_sign(all.get(at), ")"), "{expression}");
                }
            }
            Token::Name(name) if FUNCTIONS.contains(&&**name) => {
                is_variable = name == "label_values";
            }
            Token::Name(name) if OPERATORS.contains(&&**name) => {}
            Token::Name(label) if is_variable && !asked.selectors.is_empty() => {
                asked.groups.push(label.clone());
            }
            Token::Name(name) => {
                assert!(
                    !is_sign(next, "("),
                    "no function is known as {name}: {expression}"
                );
                let mut selector = Selector {
                    metric: name.clone(),
                    conditions: Vec::new(),
                };
                if is_sign(next, "{") {
                    at += 2;
                    while let (Some(Token::Name(label)), Some(Token::Sign(sign)), Some(Token::Text(value))) =
                        (all.get(at), all.get(at + 1), all.get(at + 2))
                    {
                        let condition = (label.clone(), sign.clone(), value.clone());
                        selector.conditions.push(condition);
                        at += if is_sign(all.get(at + 3), ",") { 4 } else { 3 };
                    }
                    assert!(is_sign(all.get(at), "}"), "{expression}");
                }
                asked.selectors.push(selector);
            }
            Token::Text(_) | Token::Sign(_) => {}
        }
        at += 1;
    }
    assert!(!asked.selectors.is_empty(), "nothing is asked: {expression}");
    asked
}

#[test]
fn names_of_metrics_and_labels_are_found_in_an_expression() {
    let expression = "histogram_quantile(0.99, sum by (route, le) (rate(wait_seconds_bucket{instance=~\"$router\",class!=\"53\"}[5m]))) \
                      > 0.1 and on (job) up == 0";
    let found = asked(expression);
    let condition =
        |label: &str, sign: &str, value: &str| (label.to_owned(), sign.to_owned(), value.to_owned());
    assert_eq!(found.groups, ["route", "le", "job"]);
    assert_eq!(
        found.selectors,
        [
            Selector {
                metric: "wait_seconds_bucket".to_owned(),
                conditions: vec![
                    condition("instance", "=~", "$router"),
                    condition("class", "!=", "53")
                ],
            },
            Selector {
                metric: "up".to_owned(),
                conditions: Vec::new(),
            },
        ]
    );
    let variable = asked("label_values(members{cluster=~\"$cluster\"}, member)");
    assert_eq!(
        (&*variable.selectors[0].metric, variable.selectors.len()),
        ("members", 1)
    );
    assert_eq!(variable.groups, ["member"]);
}
