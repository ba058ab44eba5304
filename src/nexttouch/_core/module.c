/*
 * The binding: class Pager of nexttouch._core, and how it gets a descriptor of another process's memory. Limited API of CPython 3.11; no module state.
 *
 * Every call that may wait releases the interpreter lock: a thread that holds it may be the one that faults.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <signal.h>

#include "pager.h"

typedef struct {
	PyObject_HEAD
	struct nt_pager *pager;
} PagerObject;

/* Waits are cut into slices so that a signal (Ctrl-C) is seen. */
#define WAIT_SLICE 0.1

/* A buffer of `item` bytes an element, C contiguous; false with an exception. */
static int get_array(PyObject *object, Py_buffer *view, Py_ssize_t item, const char *name)
{
	if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE))
		return 0;
	if (view->len % item) {
		PyErr_Format(PyExc_ValueError, "%s: %zd bytes are no whole number of elements of %zd", name, view->len, item);
		PyBuffer_Release(view);
		return 0;
	}
	return 1;
}

static void raise_error(const struct nt_error *error)
{
	PyObject *arguments = Py_BuildValue("(siz)", error->call, error->number, error->detail);
	if (arguments) {
		PyErr_SetObject(PyExc_OSError, arguments);
		Py_DECREF(arguments);
	}
}

static char *keywords[] = {"runs", "ranges", "origins", "wanted", "nodes", "cpu_nodes", "mechanism", "service", "pid", "uffd",
			   "alive_fd", "user_mode", "observe", "window", "rate", "deadline", NULL};

#define ARRAYS 6

static bool has_toucher(const int16_t *wanted, size_t pages)
{
	bool found = false;
	for (size_t page = 0; page < pages && !found; page++)
		found = wanted[page] == NT_TOUCHER;
	return found;
}

static int make_pager(PagerObject *self, struct nt_options *options, PyObject *arrays[ARRAYS])
{
	static const Py_ssize_t items[] = {sizeof(struct nt_run), sizeof(struct nt_range), sizeof(int16_t),
					   sizeof(int16_t),	  sizeof(int),		   sizeof(int)};
	Py_buffer views[ARRAYS];
	struct nt_error error = {0};
	int held = 0;
	while (held < ARRAYS && get_array(arrays[held], &views[held], items[held], keywords[held]))
		held++;
	if (held == ARRAYS) {
		options->wanted = views[3].buf;
		options->nodes = views[4].buf;
		options->nodes_count = (size_t)views[4].len / sizeof(int);
		options->cpu_nodes = views[5].buf;
		options->cpus = (size_t)views[5].len / sizeof(int);
		Py_BEGIN_ALLOW_THREADS
		options->toucher = has_toucher(options->wanted, (size_t)views[3].len / sizeof(int16_t));
		self->pager = nt_pager_new(options, views[0].buf, (size_t)views[0].len / sizeof(struct nt_run), views[1].buf,
					   (size_t)views[1].len / sizeof(struct nt_range), views[2].buf, &error);
		Py_END_ALLOW_THREADS
		if (!self->pager)
			raise_error(&error);
	}
	while (held > 0)
		PyBuffer_Release(&views[--held]);
	return self->pager ? 0 : -1;
}

static int pager_init(PyObject *object, PyObject *arguments, PyObject *named)
{
	PagerObject *self = (PagerObject *)object;
	struct nt_options options = {0};
	PyObject *arrays[ARRAYS];
	int mechanism, service, user_mode, observe;
	unsigned long long window;
	if (!PyArg_ParseTupleAndKeywords(arguments, named, "$OOOOOOiiiiippKdd", keywords, &arrays[0], &arrays[1], &arrays[2],
					 &arrays[3], &arrays[4], &arrays[5], &mechanism, &service, &options.pid, &options.uffd,
					 &options.alive_fd, &user_mode, &observe, &window, &options.rate, &options.deadline))
		return -1;
	if (self->pager) {
		PyErr_SetString(PyExc_RuntimeError, "a Pager is made once");
		return -1;
	}
	if (!nt_mechanism_name(mechanism) || (service != NT_THREAD && service != NT_INLINE)) {
		PyErr_SetString(PyExc_ValueError, "there is no such mechanism or service");
		return -1;
	}
	options.mechanism = (enum nt_mechanism)mechanism;
	options.service = (enum nt_service)service;
	options.user_mode = user_mode;
	options.observe = observe;
	options.window = window ? window : 1;
	return make_pager(self, &options, arrays);
}

static void pager_dealloc(PyObject *object)
{
	PagerObject *self = (PagerObject *)object;
	PyTypeObject *type = Py_TYPE(object);
	if (self->pager) {
		Py_BEGIN_ALLOW_THREADS
		nt_pager_free(self->pager);
		Py_END_ALLOW_THREADS
	}
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(object);
	Py_DECREF(type);
}

static struct nt_pager *pager_of(PyObject *object)
{
	struct nt_pager *pager = ((PagerObject *)object)->pager;
	if (!pager)
		PyErr_SetString(PyExc_RuntimeError, "the Pager was not made");
	return pager;
}

static PyObject *pager_start(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	struct nt_error error = {0};
	int failed = 0;
	if (!pager)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	failed = nt_pager_start(pager, &error);
	Py_END_ALLOW_THREADS
	if (failed) {
		raise_error(&error);
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *pager_wait(PyObject *object, PyObject *arguments)
{
	struct nt_pager *pager = pager_of(object);
	int phase;
	double seconds;
	bool reached = false;
	if (!pager || !PyArg_ParseTuple(arguments, "id", &phase, &seconds))
		return NULL;
	do {
		double slice = seconds < WAIT_SLICE ? (seconds > 0 ? seconds : 0) : WAIT_SLICE;
		Py_BEGIN_ALLOW_THREADS
		reached = nt_pager_wait(pager, (enum nt_phase)phase, slice);
		Py_END_ALLOW_THREADS
		if (PyErr_CheckSignals())
			return NULL;
		seconds -= slice;
	} while (!reached && seconds > 0);
	return PyBool_FromLong(reached);
}

static PyObject *pager_cancel(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	if (!pager)
		return NULL;
	nt_pager_cancel(pager);
	Py_RETURN_NONE;
}

static PyObject *pager_stats(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	if (!pager)
		return NULL;
	struct nt_stats stats;
	nt_pager_stats(pager, &stats);
	PyObject *latency = PyDict_New();
	for (unsigned bucket = 0; latency && bucket < NT_BUCKETS; bucket++) {
		if (!stats.latency[bucket])
			continue;
		PyObject *limit = PyLong_FromUnsignedLongLong(nt_bucket_limit(bucket));
		PyObject *count = PyLong_FromUnsignedLongLong(stats.latency[bucket]);
		if (!limit || !count || PyDict_SetItem(latency, limit, count))
			Py_CLEAR(latency);
		Py_XDECREF(limit);
		Py_XDECREF(count);
	}
	if (!latency)
		return NULL;
	return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsKsN}", "faults", (unsigned long long)stats.faults, "hole_faults",
			     (unsigned long long)stats.hole_faults, "windows", (unsigned long long)stats.windows, "sweeps",
			     (unsigned long long)stats.sweeps, "events", (unsigned long long)stats.events, "moves", (unsigned long long)stats.moves,
			     "move_ns", (unsigned long long)stats.move_ns, "arm_ns",
			     (unsigned long long)stats.arm_ns, "service_ns", (unsigned long long)stats.service_ns, "sweep_ns",
			     (unsigned long long)stats.sweep_ns, "longest_ns", (unsigned long long)stats.longest_ns, "latency",
			     latency);
}

static PyObject *pager_phase(PyObject *object, void *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	return pager ? PyLong_FromLong(nt_pager_phase(pager)) : NULL;
}

static PyObject *pager_shadow(PyObject *object, void *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	if (!pager)
		return NULL;
	struct nt_range shadow = nt_pager_shadow(pager);
	return Py_BuildValue("(KK)", (unsigned long long)shadow.start, (unsigned long long)shadow.size);
}

static PyObject *pager_wanted(PyObject *object, void *ignored)
{
	(void)ignored;
	struct nt_pager *pager = pager_of(object);
	size_t pages;
	if (!pager)
		return NULL;
	nt_pager_states(pager, &pages);
	return PyBytes_FromStringAndSize((const char *)nt_pager_wanted(pager), (Py_ssize_t)(pages * sizeof(int16_t)));
}

/* The buffer: the state bytes, read-only; the kernel's view of them changes while one looks. */
static int pager_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
	struct nt_pager *pager = pager_of(object);
	size_t pages;
	if (!pager) {
		view->obj = NULL;
		return -1;
	}
	const uint8_t *states = nt_pager_states(pager, &pages);
	return PyBuffer_FillInfo(view, object, (void *)(uintptr_t)states, (Py_ssize_t)pages, 1, flags);
}

static PyMethodDef pager_methods[] = {
	{"start", pager_start, METH_NOARGS, PyDoc_STR("Register the ranges and begin to arm.")},
	{"wait", pager_wait, METH_VARARGS, PyDoc_STR("wait(phase, seconds): whether the phase was reached in time.")},
	{"cancel", pager_cancel, METH_NOARGS, PyDoc_STR("Ask for everything to be given back.")},
	{"stats", pager_stats, METH_NOARGS, PyDoc_STR("Counters by name; latency: {upper bound in ns: count}.")},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef pager_attributes[] = {
	{"phase", pager_phase, NULL, PyDoc_STR("0 made, 1 arming, 2 serving, 3 done."), NULL},
	{"wanted", pager_wanted, NULL, PyDoc_STR("The node of each page's next or last move, int16 as bytes."), NULL},
	{"shadow", pager_shadow, NULL, PyDoc_STR("(address, size) of the range of parked pages."), NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pager_slots[] = {
	{Py_tp_doc, (void *)PyDoc_STR("A pager; see pager.h. As a buffer it is its state bytes.")},
	{Py_tp_init, (void *)pager_init},
	{Py_tp_dealloc, (void *)pager_dealloc},
	{Py_tp_methods, pager_methods},
	{Py_tp_getset, pager_attributes},
	{Py_bf_getbuffer, (void *)pager_getbuffer},
	{0, NULL},
};

static PyType_Spec pager_spec = {
	.name = "nexttouch._core.Pager",
	.basicsize = sizeof(PagerObject),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = pager_slots,
};

/* ---- constants ---- */

struct number {
	const char *name;
	int value;
};

static const struct number states[] = {{"planned", NT_PLANNED},	    {"arming", NT_ARMING},	   {"armed", NT_ARMED},
				       {"returning", NT_RETURNING}, {"moved_fault", NT_MOVED_FAULT}, {"moved_sweep", NT_MOVED_SWEEP},
				       {"due_fault", NT_DUE_FAULT}, {"due_sweep", NT_DUE_SWEEP},   {NULL, 0}};

static const struct number reasons[] = {
	{"absent", NT_ABSENT},	       {"at_home", NT_AT_HOME},	    {"shared", NT_SHARED},     {"busy", NT_BUSY},
	{"target_full", NT_TARGET_FULL}, {"forked", NT_FORKED},	    {"cancelled", NT_CANCELLED}, {"untouched", NT_UNTOUCHED},
	{"unmapped", NT_UNMAPPED},     {"discarded", NT_DISCARDED}, {"remapped", NT_REMAPPED}, {"unsuitable", NT_UNSUITABLE},
	{"stranded", NT_STRANDED},     {"swapped", NT_SWAPPED},	    {"target_gone", NT_TARGET_GONE}, {"outside", NT_OUTSIDE},
	{"touched", NT_TOUCHED},
	{NULL, 0}};

static const struct number phases[] = {
	{"created", NT_CREATED}, {"arming", NT_ARMING_PHASE}, {"serving", NT_SERVING}, {"done", NT_DONE}, {NULL, 0}};

static const struct number services[] = {{"thread", NT_THREAD}, {"inline", NT_INLINE}, {NULL, 0}};

static bool set_number(PyObject *dictionary, const char *name, int value)
{
	PyObject *number = PyLong_FromLong(value);
	bool failed = !number || PyDict_SetItemString(dictionary, name, number);
	Py_XDECREF(number);
	return !failed;
}

/* Add a dictionary of numbers by name, whose reference it takes; false with an exception. */
static bool add_dictionary(PyObject *module, const char *name, PyObject *dictionary, bool complete)
{
	bool failed = !dictionary || !complete || PyModule_AddObjectRef(module, name, dictionary);
	Py_XDECREF(dictionary);
	return !failed;
}

static bool add_numbers(PyObject *module, const char *name, const struct number *numbers)
{
	PyObject *dictionary = PyDict_New();
	bool complete = dictionary;
	for (; complete && numbers->name; numbers++)
		complete = set_number(dictionary, numbers->name, numbers->value);
	return add_dictionary(module, name, dictionary, complete);
}

static bool add_mechanisms(PyObject *module)
{
	PyObject *dictionary = PyDict_New();
	bool complete = dictionary;
	for (int number = 0; complete && nt_mechanism_name(number); number++)
		complete = set_number(dictionary, nt_mechanism_name(number), number);
	return add_dictionary(module, "MECHANISMS", dictionary, complete);
}

static int execute(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &pager_spec, NULL);
	bool done = type && !PyModule_AddType(module, (PyTypeObject *)type) && add_mechanisms(module) &&
		    add_numbers(module, "SERVICES", services) && add_numbers(module, "STATES", states) &&
		    add_numbers(module, "REASONS", reasons) && add_numbers(module, "PHASES", phases) &&
		    !PyModule_AddIntConstant(module, "TOUCHER", NT_TOUCHER) && !PyModule_AddIntConstant(module, "ANYWHERE", NT_ANYWHERE);
	Py_XDECREF(type);
	return done ? 0 : -1;
}

static PyObject *receive(PyObject *module, PyObject *arguments)
{
	(void)module;
	int socket, descriptor = -1;
	char data[4096];
	ssize_t size = -1;
	if (!PyArg_ParseTuple(arguments, "i", &socket))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	size = nt_receive(socket, data, sizeof data, &descriptor);
	Py_END_ALLOW_THREADS
	return size < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_BuildValue("(y#i)", data, (Py_ssize_t)size, descriptor);
}

static PyObject *forget(PyObject *module, PyObject *arguments)
{
	(void)module;
	int descriptor;
	if (!PyArg_ParseTuple(arguments, "i", &descriptor))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	nt_forget(descriptor);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
	{"receive", receive, METH_VARARGS, PyDoc_STR("receive(socket): (bytes, descriptor), which no child inherits.")},
	{"forget", forget, METH_VARARGS, PyDoc_STR("forget(descriptor): it was received, and is about to be closed.")},
	{NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
	{Py_mod_exec, (void *)execute},
	{0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_core",
	.m_doc = PyDoc_STR("The pager: serves page faults in C."),
	.m_methods = functions,
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
