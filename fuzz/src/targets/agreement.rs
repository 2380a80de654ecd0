//! What two sides say of the components of a machine's state in the negotiation.

use machine::snapshot::agreement::{Agreed, Known};

use crate::Target;
use crate::target::SMALL;

/// An offer of a source, or the choice of a destination.
pub(super) const AGREEMENT: Target = Target {
    name: "agreement",
    run,
    seeds,
    words: &[
        "{\"components\":{",
        "\"rtc\":",
        "\"vcpu.0\":",
        "[1,2]",
        "{}",
        "null",
        "-1",
        "1e9",
    ],
    longest: 512,
    memory: SMALL,
};

const HERE: &str = r#"{"components":{"rtc":[1,2],"serial":[2,4],"vcpu.0":[1,1]}}"#;

fn run(bytes: &[u8]) {
    let Some((&which, text)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let here = Known::from_json(HERE).expect("a list of components");
    if which % 2 == 0 {
        let Ok(offered) = Known::from_json(&text) else {
            return;
        };
        let again = Known::from_json(&offered.to_json());
        assert_eq!(again.as_ref(), Ok(&offered));
        if let Ok(chosen) = here.choose(&offered) {
            assert_eq!(
                offered.check(&chosen),
                Ok(()),
                "a choice that was not offered"
            );
            assert_eq!(here.check(&chosen), Ok(()), "a choice that cannot be read");
        }
    } else if let Ok(chosen) = Agreed::from_json(&text) {
        let again = Agreed::from_json(&chosen.to_json());
        assert_eq!(again.as_ref(), Ok(&chosen));
        let _ = here.check(&chosen);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let offer = [b"\0", HERE.as_bytes()].concat();
    vec![
        offer,
        b"\x01{\"components\":{\"rtc\":2,\"serial\":3,\"vcpu.0\":1}}".to_vec(),
    ]
}
