//! SQLSTATE codes: those that the router reports, and those that it acts on when a server reports
//! them (PostgreSQL documentation, appendix "Error Codes").

/// A five-character SQLSTATE, or [`SqlState::MISSING`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// Of a report that has no SQLSTATE, or none of five ASCII letters and digits.
    pub const MISSING: Self = Self([0; 5]);

    pub const WARNING: Self = Self(*b"01000");
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self(*b"08007");
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    pub const NUMERIC_VALUE_OUT_OF_RANGE: Self = Self(*b"22003");
    pub const INVALID_DATETIME_FORMAT: Self = Self(*b"22007");
    pub const DIVISION_BY_ZERO: Self = Self(*b"22012");
    pub const CHARACTER_NOT_IN_REPERTOIRE: Self = Self(*b"22021");
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    pub const INVALID_ESCAPE_SEQUENCE: Self = Self(*b"22025");
    pub const INVALID_TEXT_REPRESENTATION: Self = Self(*b"22P02");
    pub const INVALID_BINARY_REPRESENTATION: Self = Self(*b"22P03");
    pub const INVALID_REGULAR_EXPRESSION: Self = Self(*b"2201B");
    pub const INVALID_ROW_COUNT_IN_LIMIT: Self = Self(*b"2201W");
    pub const INVALID_ROW_COUNT_IN_OFFSET: Self = Self(*b"2201X");
    pub const ACTIVE_SQL_TRANSACTION: Self = Self(*b"25001");
    pub const READ_ONLY_TRANSACTION: Self = Self(*b"25006");
    pub const NO_ACTIVE_SQL_TRANSACTION: Self = Self(*b"25P01");
    pub const IN_FAILED_SQL_TRANSACTION: Self = Self(*b"25P02");
    pub const INVALID_SQL_STATEMENT_NAME: Self = Self(*b"26000");
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    pub const INVALID_CURSOR_NAME: Self = Self(*b"34000");
    pub const INVALID_SAVEPOINT: Self = Self(*b"3B001");
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    pub const INVALID_SCHEMA_NAME: Self = Self(*b"3F000");
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    pub const UNDEFINED_COLUMN: Self = Self(*b"42703");
    pub const AMBIGUOUS_COLUMN: Self = Self(*b"42702");
    pub const GROUPING_ERROR: Self = Self(*b"42803");
    pub const DATATYPE_MISMATCH: Self = Self(*b"42804");
    pub const CANNOT_COERCE: Self = Self(*b"42846");
    pub const UNDEFINED_TABLE: Self = Self(*b"42P01");
    pub const UNDEFINED_PARAMETER: Self = Self(*b"42P02");
    pub const AMBIGUOUS_PARAMETER: Self = Self(*b"42P08");
    pub const AMBIGUOUS_ALIAS: Self = Self(*b"42P09");
    pub const INVALID_COLUMN_REFERENCE: Self = Self(*b"42P10");
    pub const INDETERMINATE_DATATYPE: Self = Self(*b"42P18");
    pub const DUPLICATE_PREPARED_STATEMENT: Self = Self(*b"42P05");
    pub const NAME_TOO_LONG: Self = Self(*b"42622");
    pub const UNDEFINED_FUNCTION: Self = Self(*b"42883");
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    pub const OBJECT_IN_USE: Self = Self(*b"55006");
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self(*b"54000");
    pub const STATEMENT_TOO_COMPLEX: Self = Self(*b"54001");
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self(*b"25P03");
    pub const TRANSACTION_TIMEOUT: Self = Self(*b"25P04");
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    pub const DATABASE_DROPPED: Self = Self(*b"57P04");
    pub const CONFIG_FILE_ERROR: Self = Self(*b"F0000");
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// As it stands in a report.
    pub fn of(code: &[u8]) -> Self {
        <[u8; 5]>::try_from(code)
            .ok()
            .filter(|code| code.iter().all(u8::is_ascii_alphanumeric))
            .map_or(Self::MISSING, Self)
    }

    /// Empty where it is missing.
    pub fn as_str(&self) -> &str {
        match self {
            &Self::MISSING => "",
            Self(code) => str::from_utf8(code).expect("only ASCII is taken"),
        }
    }

    /// The class that its first two characters name.
    pub fn is_in_class(self, class: [u8; 2]) -> bool {
        self.0.starts_with(&class)
    }
}

impl std::fmt::Display for SqlState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for SqlState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SqlState({})", self.as_str())
    }
}

impl PartialEq<&str> for SqlState {
    fn eq(&self, code: &&str) -> bool {
        self.as_str() == *code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_five_letters_and_digits_or_is_missing() {
        assert_eq!(SqlState::of(b"57P01"), SqlState::ADMIN_SHUTDOWN);
        assert!(SqlState::of(b"57P01").is_in_class(*b"57"));
        for code in [&b""[..], b"57P0", b"57P011", b"57P\x001", b"57P\xff1", b"57 01"] {
            assert_eq!(SqlState::of(code), SqlState::MISSING);
        }
        assert_eq!(
            (SqlState::MISSING.as_str(), SqlState::ADMIN_SHUTDOWN.as_str()),
            ("", "57P01")
        );
        assert!(!SqlState::MISSING.is_in_class(*b"57"));
    }
}
