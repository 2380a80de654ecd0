//! Inputs that a corpus begins with, as several targets make them.

/// None: any bytes are an input.
pub(super) fn no_seeds() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Texts as seeds.
pub(super) fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
