//! What is looked at before a query is parsed: its length, and its shape.
//!
//! For a query in a query, for tables in parentheses and for joins, the parser calls itself, with
//! much stack each time and partly without a limit. The console has none of them, so that they are
//! refused by their words. What is left to the parser are rows of operators, which take no stack,
//! and expressions in expressions, which it limits.

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};

use super::planner::unsupported;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Words and signs of a query. What is read of them takes memory in proportion, and the end of a
/// long row of operators takes stack: 2 MiB are enough for more than this.
const MAX_TOKENS: usize = 10_000;
/// `IN ((1), 2)`: the parser tries to read what stands in parentheses as a query first.
const MAX_BEHIND_IN: usize = 2;
/// How deep what the parser calls itself for may be in an expression, such as parentheses.
pub(super) const MAX_NESTING: usize = 20;

/// The words and signs of one `SELECT` from one view. `TABLE name` becomes what it stands for.
///
/// # Errors
/// The query is too long, or it is none of the console's.
pub(super) fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, ErrorReply> {
    let mut tokens = Tokenizer::new(&PostgreSqlDialect {}, text)
        .tokenize_with_location()
        .map_err(|fault| ErrorReply::error(SqlState::SYNTAX_ERROR, fault.to_string()))?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    if tokens.len() > MAX_TOKENS {
        return Err(ErrorReply::error(
            SqlState::STATEMENT_TOO_COMPLEX,
            format!("a query of the console has at most {MAX_TOKENS} words and signs"),
        ));
    }
    match tokens.first().map(|first| (keyword(&first.token), first.span)) {
        Some((Keyword::SELECT, _)) => {}
        Some((Keyword::TABLE, span)) => {
            let all = [
                Token::make_keyword("SELECT"),
                Token::Mul,
                Token::make_keyword("FROM"),
            ];
            tokens.splice(..1, all.map(|token| TokenWithSpan { token, span }));
        }
        Some((Keyword::WITH, _)) => {
            return Err(unsupported("WITH, FETCH, and what else stands around SELECT"));
        }
        Some((Keyword::VALUES, _)) => return Err(in_parentheses()),
        Some(_) if tokens[0].token == Token::LParen => return Err(in_parentheses()),
        _ => return Err(unsupported("this command")),
    }
    Shape::default().check(&tokens)?;
    Ok(tokens)
}

fn in_parentheses() -> ErrorReply {
    unsupported("UNION, VALUES and queries in parentheses")
}

fn keyword(token: &Token) -> Keyword {
    match token {
        Token::Word(Word {
            quote_style: None,
            keyword,
            ..
        }) => *keyword,
        _ => Keyword::NoKeyword,
    }
}

pub(super) fn too_nested() -> ErrorReply {
    ErrorReply::error(
        SqlState::STATEMENT_TOO_COMPLEX,
        format!("an expression of this query is nested deeper than {MAX_NESTING}, the console's limit"),
    )
    .hint("Use fewer parentheses, NOT, signs, CASE and functions in each other.")
}

/// How deep a query is nested. The parser counts by itself, but where it may not go deeper it takes
/// NOT and CASE for names, and finds another fault.
#[derive(Default)]
struct Nesting {
    /// For each parenthesis and CASE that is open, how much deeper it leads.
    open: Vec<usize>,
    depth: usize,
    /// NOT and signs one behind the other.
    prefixes: usize,
}

impl Nesting {
    fn check(&mut self, token: &Token, now: Keyword) -> Result<(), ErrorReply> {
        match (token, now) {
            (Token::Minus | Token::Plus, _) | (_, Keyword::NOT) => self.prefixes += 1,
            (Token::LParen, _) | (_, Keyword::CASE) => {
                let deeper = std::mem::take(&mut self.prefixes) + 1;
                self.open.push(deeper);
                self.depth += deeper;
            }
            (Token::RParen, _) | (_, Keyword::END) => {
                self.depth -= self.open.pop().unwrap_or(0);
                self.prefixes = 0;
            }
            _ => self.prefixes = 0,
        }
        if self.depth + self.prefixes > MAX_NESTING {
            return Err(too_nested());
        }
        Ok(())
    }
}

/// Where the check is in a query.
#[derive(Default)]
struct Shape {
    /// Of parentheses.
    depth: usize,
    is_in_from: bool,
    /// Parentheses since an `IN`, if nothing else stands between.
    behind_in: Option<usize>,
    nesting: Nesting,
}

impl Shape {
    fn check(mut self, tokens: &[TokenWithSpan]) -> Result<(), ErrorReply> {
        let mut before = [Keyword::NoKeyword; 2];
        for (place, token) in tokens.iter().enumerate() {
            let now = keyword(&token.token);
            match now {
                Keyword::SELECT if place > 0 => return Err(in_parentheses()),
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => return Err(in_parentheses()),
                Keyword::JOIN => return Err(unsupported("more than one view in FROM")),
                // Not that of IS DISTINCT FROM, nor that of extract(epoch FROM …).
                Keyword::FROM if self.depth == 0 => {
                    self.is_in_from |= !matches!(before, [Keyword::IS | Keyword::NOT, Keyword::DISTINCT]);
                }
                Keyword::WHERE
                | Keyword::GROUP
                | Keyword::HAVING
                | Keyword::ORDER
                | Keyword::LIMIT
                | Keyword::OFFSET
                    if self.depth == 0 =>
                {
                    self.is_in_from = false;
                }
                _ => {}
            }
            match &token.token {
                Token::LParen if matches!(before[1], Keyword::EXISTS | Keyword::ARRAY) => {
                    return Err(in_parentheses());
                }
                Token::LParen if self.is_in_from => {
                    return Err(unsupported("queries, functions and parentheses in FROM"));
                }
                Token::LParen => {
                    self.depth += 1;
                    self.behind_in = self.behind_in.map(|count| count + 1);
                    if self.behind_in > Some(MAX_BEHIND_IN) {
                        return Err(unsupported("this form of IN"));
                    }
                }
                Token::RParen => self.depth = self.depth.saturating_sub(1),
                // The whole query is one statement.
                Token::SemiColon if place + 1 < tokens.len() => {
                    return Err(unsupported("several commands in one query"));
                }
                _ => self.behind_in = None,
            }
            self.nesting.check(&token.token, now)?;
            if now == Keyword::IN {
                self.behind_in = Some(0);
            }
            before = [before[1], now];
        }
        Ok(())
    }
}
