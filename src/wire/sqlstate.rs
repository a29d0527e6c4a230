//! The SQLSTATE codes the router itself reports (PostgreSQL documentation, appendix "Error Codes").

/// A five-character SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(&'static str);

impl SqlState {
    pub const CONNECTION_FAILURE: Self = Self("08006");
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self("08007");
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    pub const FEATURE_NOT_SUPPORTED: Self = Self("0A000");
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    pub const INVALID_PASSWORD: Self = Self("28P01");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self("42501");
    pub const INVALID_SQL_STATEMENT_NAME: Self = Self("26000");
    pub const INVALID_CURSOR_NAME: Self = Self("34000");
    pub const NAME_TOO_LONG: Self = Self("42622");
    pub const CHARACTER_NOT_IN_REPERTOIRE: Self = Self("22021");
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self("54000");
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    pub const INVALID_PARAMETER_VALUE: Self = Self("22023");
    pub const QUERY_CANCELED: Self = Self("57014");
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    pub const READ_ONLY_TRANSACTION: Self = Self("25006");
    pub const INTERNAL_ERROR: Self = Self("XX000");

    pub fn as_str(self) -> &'static str {
        self.0
    }
}
