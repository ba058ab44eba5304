/* A mark spells its name by reading this page, at the place of each letter and at last at that of zero (marks.py). */
#define MARK_PAGE 0x4e5400000000ull
#define MARK_SIZE 4096ull
#define MARK_STRIDE 16ull
