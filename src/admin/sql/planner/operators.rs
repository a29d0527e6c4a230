//! Operators: which types they take, and what type they give.

use sqlparser::ast::{self, Array, BinaryOperator};

use super::super::super::relation::{Kind, Value};
use super::super::expr::{Arithmetic, Comparison, Expr};
use super::{Planned, Planner, Typed, negate, not, unsupported};
use crate::auth::hba::regex::Pattern;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

impl Planner {
    pub(super) fn binary(&mut self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Planned {
        if let Some(comparison) = comparison(op) {
            return self.compare(left, comparison, right).map(Typed::boolean);
        }
        match op {
            BinaryOperator::And | BinaryOperator::Or => self.junction(left, op, right),
            BinaryOperator::PGRegexMatch => self.matches(left, right, false),
            BinaryOperator::PGRegexNotMatch => self.matches(left, right, true),
            BinaryOperator::PGLikeMatch => self.like(left, right, false).map(Typed::boolean),
            BinaryOperator::PGILikeMatch => self.like(left, right, true).map(Typed::boolean),
            BinaryOperator::PGNotLikeMatch => self.like(left, right, false).map(not),
            BinaryOperator::PGNotILikeMatch => self.like(left, right, true).map(not),
            _ => self.computation(left, op, right),
        }
    }

    /// A row of `AND`, or one of `OR`. However long it is, it takes one level of depth.
    fn junction(&mut self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Planned {
        let (mut all, mut first) = (vec![right], left);
        while let ast::Expr::BinaryOp { left, op: of, right } = first
            && of == op
        {
            all.push(right);
            first = left;
        }
        all.push(first);
        let all = all.into_iter().rev().map(|one| self.condition(one));
        let all = all.collect::<Result<_, _>>()?;
        Ok(Typed::boolean(if *op == BinaryOperator::And {
            Expr::And(all)
        } else {
            Expr::Or(all)
        }))
    }

    /// A row of arithmetic, from left to right. It takes one level of depth, too.
    fn computation(&mut self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Planned {
        let operation = arithmetic(op).ok_or_else(|| unsupported(&format!("the operator {op}")))?;
        let (mut row, mut first) = (vec![(operation, op, right)], left);
        while let ast::Expr::BinaryOp { left, op, right } = first
            && let Some(operation) = arithmetic(op)
        {
            row.push((operation, op, right));
            first = left;
        }
        let mut made = self.expr(first)?;
        for (operation, op, right) in row.into_iter().rev() {
            let other = self.expr(right)?;
            made = self.arithmetic(operation, &op.to_string(), made, other)?;
        }
        Ok(made)
    }

    fn arithmetic(&mut self, operation: Arithmetic, sign: &str, one: Typed, other: Typed) -> Planned {
        if operation == Arithmetic::Join {
            // One of both is a text, and the other becomes one.
            let has_text = [&one, &other]
                .iter()
                .any(|side| matches!(side.kind, None | Some(Kind::Text)));
            if !has_text
                || [&one, &other]
                    .iter()
                    .any(|side| side.kind == Some(Kind::TextArray))
            {
                return Err(no_operator(sign, one.kind_name(), other.kind_name()));
            }
            let (one, other) = (self.convert(one, Kind::Text)?, self.convert(other, Kind::Text)?);
            let joined = one.expr.computed_with(operation, Kind::Text, other.expr);
            return Ok(Typed::new(joined, Kind::Text));
        }
        let (one, other) = match (one.kind, other.kind) {
            // As PostgreSQL: of the same type where there is an operator for it.
            (Some(Kind::Timestamp), None) if operation == Arithmetic::Add => {
                (one, self.settle(other, Kind::Interval)?)
            }
            (None, Some(Kind::Timestamp)) if operation == Arithmetic::Add => {
                (self.settle(one, Kind::Interval)?, other)
            }
            (Some(kind), None) => (one, self.settle(other, kind)?),
            (None, Some(kind)) => (self.settle(one, kind)?, other),
            _ => (one, other),
        };
        let kinds = one.kind.zip(other.kind);
        let kind = match (operation, kinds) {
            (Arithmetic::Remainder, Some((Kind::Float8, _) | (_, Kind::Float8))) => None,
            (_, Some((one, other))) if one.is_number() && other.is_number() => Some(wider(one, other)),
            (
                Arithmetic::Add,
                Some((Kind::Timestamp, Kind::Interval) | (Kind::Interval, Kind::Timestamp)),
            )
            | (Arithmetic::Subtract, Some((Kind::Timestamp, Kind::Interval))) => Some(Kind::Timestamp),
            (Arithmetic::Subtract, Some((Kind::Timestamp, Kind::Timestamp))) => Some(Kind::Interval),
            _ => None,
        };
        let Some(kind) = kind else {
            return Err(no_operator(sign, one.kind_name(), other.kind_name()));
        };
        let computed = one.expr.computed_with(operation, kind, other.expr);
        Ok(Typed::new(computed, kind))
    }

    pub(super) fn compare(
        &mut self,
        left: &ast::Expr,
        comparison: Comparison,
        right: &ast::Expr,
    ) -> Result<Expr, ErrorReply> {
        let (one, other) = self.pair(left, right, sign(comparison))?;
        Ok(Expr::Compare(comparison, one.into(), other.into()))
    }

    /// Two that can be compared with each other.
    pub(super) fn pair(
        &mut self,
        left: &ast::Expr,
        right: &ast::Expr,
        sign: &str,
    ) -> Result<(Expr, Expr), ErrorReply> {
        let (one, other) = (self.expr(left)?, self.expr(right)?);
        let (one, other) = self.alike(one, other, sign)?;
        Ok((one.expr, other.expr))
    }

    pub(super) fn alike(
        &mut self,
        one: Typed,
        other: Typed,
        sign: &str,
    ) -> Result<(Typed, Typed), ErrorReply> {
        match (one.kind, other.kind) {
            (Some(kind), None) => {
                let other = self.settle(other, kind)?;
                Ok((one, other))
            }
            (None, kind) => {
                let kind = kind.unwrap_or(Kind::Text);
                Ok((self.settle(one, kind)?, self.settle(other, kind)?))
            }
            (Some(first), Some(second)) if first == second || (first.is_number() && second.is_number()) => {
                Ok((one, other))
            }
            _ => Err(no_operator(sign, one.kind_name(), other.kind_name())),
        }
    }

    pub(super) fn one_of(&mut self, wanted: &ast::Expr, list: &[ast::Expr]) -> Result<Expr, ErrorReply> {
        let mut wanted = self.expr(wanted)?;
        let mut planned = Vec::with_capacity(list.len());
        for one in list {
            let one = self.expr(one)?;
            // The first that has a type gives it to what is looked for.
            if wanted.kind.is_none()
                && let Some(kind) = one.kind
            {
                wanted = self.settle(wanted, kind)?;
            }
            planned.push(one);
        }
        let mut settled = Vec::with_capacity(planned.len());
        for one in planned {
            let (looked_for, one) = self.alike(wanted, one, "=")?;
            wanted = looked_for;
            settled.push(one.expr);
        }
        Ok(Expr::In(wanted.expr.into(), settled))
    }

    pub(super) fn like(
        &mut self,
        text: &ast::Expr,
        pattern: &ast::Expr,
        ignores_case: bool,
    ) -> Result<Expr, ErrorReply> {
        let sign = if ignores_case { "~~*" } else { "~~" };
        let (text, pattern) = self.texts(text, pattern, sign)?;
        Ok(Expr::Like {
            text: text.into(),
            pattern: pattern.into(),
            ignores_case,
        })
    }

    fn texts(&mut self, one: &ast::Expr, other: &ast::Expr, sign: &str) -> Result<(Expr, Expr), ErrorReply> {
        let (one, other) = (self.expr(one)?, self.expr(other)?);
        let (one, other) = (self.settle(one, Kind::Text)?, self.settle(other, Kind::Text)?);
        if one.kind != Some(Kind::Text) || other.kind != Some(Kind::Text) {
            return Err(no_operator(sign, one.kind_name(), other.kind_name()));
        }
        Ok((one.expr, other.expr))
    }

    pub(super) fn matches(&mut self, text: &ast::Expr, pattern: &ast::Expr, negated: bool) -> Planned {
        let (text, pattern) = self.texts(text, pattern, "~")?;
        let Expr::Constant(Value::Text(pattern)) = pattern else {
            return Err(unsupported("a regular expression that is not a literal"));
        };
        let pattern = Pattern::new(pattern.as_bytes()).map_err(|fault| {
            ErrorReply::error(
                SqlState::INVALID_REGULAR_EXPRESSION,
                format!("the console does not read this regular expression: {fault}"),
            )
        })?;
        self.grow(pattern.steps())?;
        let matches = Expr::Matches {
            text: text.into(),
            pattern,
        };
        Ok(negate(negated, matches))
    }

    pub(super) fn any_of(&mut self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Planned {
        let comparison = comparison(op).ok_or_else(|| unsupported(&format!("the operator {op} with ANY")))?;
        let mut right = right;
        while let ast::Expr::Nested(inner) = right {
            right = inner;
        }
        if let ast::Expr::Array(Array { elem, .. }) = right
            && comparison == Comparison::Equal
            && !elem.is_empty()
        {
            return self.one_of(left, elem).map(Typed::boolean);
        }
        let (one, array) = (self.expr(left)?, self.expr(right)?);
        let (one, array) = (
            self.settle(one, Kind::Text)?,
            self.settle(array, Kind::TextArray)?,
        );
        if (one.kind, array.kind) != (Some(Kind::Text), Some(Kind::TextArray)) {
            return Err(no_operator(sign(comparison), one.kind_name(), array.kind_name()));
        }
        let any = Expr::Any(comparison, one.expr.into(), array.expr.into());
        Ok(Typed::boolean(any))
    }
}

/// The type of what is made of two numbers.
pub(super) fn wider(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (Kind::Int4, Kind::Int4) => Kind::Int4,
        (Kind::Float8, _) | (_, Kind::Float8) => Kind::Float8,
        _ => Kind::Int8,
    }
}

fn arithmetic(op: &BinaryOperator) -> Option<Arithmetic> {
    Some(match op {
        BinaryOperator::Plus => Arithmetic::Add,
        BinaryOperator::Minus => Arithmetic::Subtract,
        BinaryOperator::Multiply => Arithmetic::Multiply,
        BinaryOperator::Divide => Arithmetic::Divide,
        BinaryOperator::Modulo => Arithmetic::Remainder,
        BinaryOperator::StringConcat => Arithmetic::Join,
        _ => return None,
    })
}

fn comparison(op: &BinaryOperator) -> Option<Comparison> {
    Some(match op {
        BinaryOperator::Eq => Comparison::Equal,
        BinaryOperator::NotEq => Comparison::NotEqual,
        BinaryOperator::Lt => Comparison::Less,
        BinaryOperator::LtEq => Comparison::LessOrEqual,
        BinaryOperator::Gt => Comparison::Greater,
        BinaryOperator::GtEq => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "=",
        Comparison::NotEqual => "<>",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
    }
}

fn no_operator(sign: &str, one: &str, other: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::UNDEFINED_FUNCTION,
        format!("operator does not exist: {one} {sign} {other}"),
    )
    .hint("You might need to add explicit type casts.")
}
