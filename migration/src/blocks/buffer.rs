//! Memory for blocks on their way between a disk and a connection.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::PAGE_SIZE;

#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE as usize]);

/// A buffer that begins on a page's boundary, as storage that is read without the page cache wants it.
pub(crate) struct PageBuffer(Vec<Page>);

impl PageBuffer {
    /// Of `len` bytes, a multiple of the page size, all zero. What is never written takes no memory.
    pub fn new(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE as usize);
        let zeroed = Page::new_vec_zeroed(pages);
        // Without memory the second attempt ends as any other allocation does.
        Self(zeroed.unwrap_or_else(|_| vec![Page::new_zeroed(); pages]))
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice().as_bytes()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_on_a_page_and_is_zero() {
        let buffer = PageBuffer::new(3 * PAGE_SIZE as usize);
        assert_eq!(buffer.bytes().len(), 3 * PAGE_SIZE as usize);
        assert_eq!(buffer.bytes().as_ptr() as usize % PAGE_SIZE as usize, 0);
        assert!(buffer.bytes().iter().all(|&byte| byte == 0));
    }
}
