/* A page that moves while two threads store to it: the same as `protocol` of test_spin.py, step by step.
 *
 * Each d_step, and each statement outside of one, is one step there. Processes do not end, they block at a label that
 * says so: ending would be a step of its own, and Spin lets processes end in one order only. `ended` adds no state, as
 * it follows from where the processes are.
 *
 *   UNFLUSHED   the page is copied while translations of it are left: a store is lost
 *   UNORDERED   whoever waits for the page keeps the lock of the page table: a deadlock
 *   BUSY        whoever waits looks again and again: a cycle
 */
#define THREADS 2
#ifndef STORES
#define STORES 2
#endif

#define OLD 0
#define NEW 1
#define MOVING 2
#define NOWHERE 3

byte entry = OLD;
byte tlb[THREADS] = NOWHERE;
byte words[2];
byte stored;
bool page_lock;
bool table_lock;
byte ended;

#define end_of_a_process \
    ended++; \
    assert(ended <= THREADS || words[entry] == stored)

active [THREADS] proctype thread()
{
    byte value;
    byte left = STORES;

compute:
    value = 1;  /* nobody else sees it */
access:
    if
    :: d_step {
           tlb[_pid] != NOWHERE && left > 1 ->
           words[tlb[_pid]] = words[tlb[_pid]] + value;
           stored = stored + value;
           value = 0;
           left--
       }
       goto compute
    :: d_step {
           tlb[_pid] != NOWHERE && left == 1 ->
           words[tlb[_pid]] = words[tlb[_pid]] + value;
           stored = stored + value;
           value = 0;
           left--;
           end_of_a_process
       }
       goto end_blocked
    :: d_step { tlb[_pid] == NOWHERE && entry != MOVING -> tlb[_pid] = entry }
       goto access
    :: d_step {
           tlb[_pid] == NOWHERE && entry == MOVING && !table_lock ->
#ifdef UNORDERED
           table_lock = true
#endif
       }
    fi;
    /* It waits for the page, and reads the entry again. */
    d_step {
#ifdef BUSY
        true ->
#else
        !page_lock ->
#endif
#ifdef UNORDERED
        table_lock = false
#endif
    }
    goto access;
end_blocked:
    false
}

active proctype migration()
{
    d_step { !page_lock -> page_lock = true }
    d_step { !table_lock -> entry = MOVING }
#ifndef UNFLUSHED
    tlb[0] = NOWHERE;
    tlb[1] = NOWHERE;
#endif
    words[NEW] = words[OLD];
    d_step { !table_lock -> entry = NEW }
    d_step { page_lock = false; end_of_a_process }
end_blocked:
    false
}
