//! Calls of functions and of aggregates.

use sqlparser::ast::{
    self, DuplicateTreatment, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    ObjectName,
};

use super::super::super::relation::Kind;
use super::super::expr::Expr;
use super::super::function::{Aggregate, Grouping, Scalar, Takes};
use super::{Planned, Planner, Typed, folded, unsupported};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

impl Planner {
    pub(super) fn function(&mut self, function: &ast::Function) -> Planned {
        let name = function_name(&function.name)?;
        let (distinct, arguments) = arguments(function, &name)?;
        if let Some(grouping) = Grouping::named(&name) {
            return self.aggregate(grouping, &name, distinct, &arguments, function.filter.as_deref());
        }
        let plain: Option<Vec<&ast::Expr>> = arguments.iter().copied().collect();
        match (Scalar::named(&name), plain) {
            (Some(scalar), Some(plain)) if !distinct && function.filter.is_none() => {
                self.call(scalar, &name, &plain)
            }
            _ => Err(ErrorReply::error(
                SqlState::UNDEFINED_FUNCTION,
                format!("function {name} does not exist, or not with these arguments"),
            )
            .hint(
                "The console has count, sum, avg, min, max, bool_and, bool_or; lower, upper, length, cardinality, \
                 coalesce, abs, floor, ceil, round, extract(epoch from …), now, version, current_user, current_database.",
            )),
        }
    }

    pub(super) fn call(&mut self, scalar: Scalar, name: &str, arguments: &[&ast::Expr]) -> Planned {
        let mut planned = Vec::with_capacity(arguments.len());
        for argument in arguments {
            planned.push(self.expr(argument)?);
        }
        let wrong = |planned: &[Typed]| {
            let kinds: Vec<&str> = planned.iter().map(Typed::kind_name).collect();
            ErrorReply::error(
                SqlState::UNDEFINED_FUNCTION,
                format!("function {name}({}) does not exist", kinds.join(", ")),
            )
        };
        let takes = scalar.takes();
        let kinds: &[Option<Kind>] = &match takes {
            Takes::Nothing => vec![],
            Takes::One(kind) => vec![Some(kind)],
            Takes::Number | Takes::TimeOrInterval => vec![None],
            Takes::NumberAndDigits => vec![None, Some(Kind::Int4)],
            Takes::Alike => vec![None; planned.len()],
        };
        let least = match takes {
            Takes::NumberAndDigits | Takes::Alike => 1,
            _ => kinds.len(),
        };
        if planned.len() < least || planned.len() > kinds.len() {
            return Err(wrong(&planned));
        }
        if takes == Takes::Alike {
            let (all, kind) = self.of_one_kind(planned, "COALESCE")?;
            return Ok(Typed::new(Expr::Call(scalar, all), scalar.kind(Some(kind))));
        }
        let mut settled = Vec::with_capacity(planned.len());
        for (one, wanted) in planned.into_iter().zip(kinds) {
            let default = match takes {
                Takes::TimeOrInterval => Kind::Timestamp,
                _ => Kind::Float8,
            };
            let one = self.settle(one, wanted.unwrap_or(default))?;
            let fits = match (one.kind, wanted) {
                (kind, Some(wanted)) => kind == Some(*wanted),
                (Some(kind), None) if takes == Takes::TimeOrInterval => {
                    matches!(kind, Kind::Timestamp | Kind::Interval)
                }
                (Some(kind), None) => kind.is_number(),
                (None, None) => false,
            };
            settled.push(one);
            if !fits {
                return Err(wrong(&settled));
            }
        }
        let kind = scalar.kind(settled.first().and_then(|one| one.kind));
        let arguments = settled.into_iter().map(|one| one.expr).collect();
        Ok(Typed::new(Expr::Call(scalar, arguments), kind))
    }

    fn aggregate(
        &mut self,
        function: Grouping,
        name: &str,
        is_distinct: bool,
        arguments: &[Option<&ast::Expr>],
        filter: Option<&ast::Expr>,
    ) -> Planned {
        if let Some(clause) = self.without_aggregates {
            return Err(ErrorReply::error(
                SqlState::GROUPING_ERROR,
                format!("aggregate functions are not allowed in {clause}"),
            ));
        }
        self.without_aggregates = Some("an aggregate function");
        let argument = match arguments {
            [None] if function == Grouping::Count && !is_distinct => Ok(None),
            [Some(argument)] => self.expr(argument).and_then(|one| {
                let default = match function {
                    Grouping::Sum | Grouping::Average => Kind::Float8,
                    Grouping::Every | Grouping::Some => Kind::Bool,
                    _ => Kind::Text,
                };
                self.settle(one, default).map(Some)
            }),
            _ => Err(unsupported(&format!("{name} with these arguments"))),
        };
        let filter = filter.map(|filter| self.condition(filter)).transpose();
        self.without_aggregates = None;
        let (argument, filter) = (argument?, filter?);
        let of = argument.as_ref().and_then(|one| one.kind).unwrap_or(Kind::Bool);
        let kind = function.kind(of).ok_or_else(|| {
            ErrorReply::error(
                SqlState::UNDEFINED_FUNCTION,
                format!("function {name}({}) does not exist", of.name()),
            )
        })?;
        let aggregate = Aggregate {
            function,
            is_distinct,
            argument: argument.map(|one| one.expr),
            filter,
        };
        Ok(Typed::new(Expr::Aggregate(Box::new(aggregate)), kind))
    }
}

/// Without the schema of the system's own functions.
pub(in crate::admin::sql) fn function_name(name: &ObjectName) -> Result<String, ErrorReply> {
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(folded)).collect();
    match parts.as_deref() {
        Some([name]) => Ok(name.clone()),
        Some([schema, name]) if schema == "pg_catalog" => Ok(name.clone()),
        _ => Err(unsupported("a function of this name")),
    }
}

/// Whether `DISTINCT` stands before them, and the arguments; `None` for `*`.
fn arguments<'a>(
    function: &'a ast::Function,
    name: &str,
) -> Result<(bool, Vec<Option<&'a ast::Expr>>), ErrorReply> {
    let ast::Function {
        name: _,
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args,
        within_group,
        filter: _,
        null_treatment: None,
        over: None,
    } = function
    else {
        return Err(unsupported(&format!("this form of calling {name}")));
    };
    let list = match args {
        FunctionArguments::None => return Ok((false, Vec::new())),
        FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment,
            args,
            clauses,
        }) if clauses.is_empty() && within_group.is_empty() => (duplicate_treatment, args),
        _ => return Err(unsupported(&format!("this form of calling {name}"))),
    };
    let one = |argument: &'a FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(Some(expr)),
        FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => Ok(None),
        _ => Err(unsupported(&format!("this form of calling {name}"))),
    };
    let all = list.1.iter().map(one).collect::<Result<_, _>>()?;
    Ok((*list.0 == Some(DuplicateTreatment::Distinct), all))
}
