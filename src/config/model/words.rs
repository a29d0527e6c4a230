//! Enums whose values are words of the file. Each word is written beside its value and nowhere
//! else: the schema, the readers and the views take it from here.

/// An enum whose values are words of the file.
pub trait Words: Copy + PartialEq + 'static {
    const VALUES: &'static [Self];
    /// The words of [`Self::VALUES`], in the same order.
    const WORDS: &'static [&'static str];

    /// The value that has this word.
    fn from_word(word: &str) -> Option<Self> {
        let index = Self::WORDS.iter().position(|known| *known == word)?;
        Self::VALUES.get(index).copied()
    }

    /// The word of this value.
    fn word(self) -> &'static str {
        let index = Self::VALUES.iter().position(|known| *known == self);
        index
            .and_then(|index| Self::WORDS.get(index).copied())
            .unwrap_or_default()
    }
}

/// Defines an enum with its words: `Value = "word"`.
macro_rules! words {
    ($(
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$value_meta:meta])* $value:ident = $word:literal,)+
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$value_meta])* $value,)+
        }

        impl $crate::config::model::Words for $name {
            const VALUES: &'static [Self] = &[$(Self::$value),+];
            const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::config::model::Words::word(*self))
            }
        }
    )+};
}

pub(super) use words;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Balance;

    #[test]
    fn every_word_has_its_value() {
        for (word, value) in Balance::WORDS.iter().zip(Balance::VALUES) {
            assert_eq!(Balance::from_word(word), Some(*value));
            assert_eq!(value.to_string(), *word);
        }
        assert_eq!(Balance::from_word("any"), None);
    }
}
