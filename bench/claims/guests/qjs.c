/* QuickJS as a command: `qjs -e SCRIPT`, with `print` for output and nothing else of a host.
 *
 * Built twice by `make claims-tools`, with the C files of the package in toolchain/quickjs.txt: as a WASI
 * command, and as a program for this machine. Exit status: 1 for an uncaught exception, 2 for usage. */
#include <quickjs.h>
#include <stdio.h>
#include <string.h>

static JSValue print(JSContext *context, JSValueConst this, int argc, JSValueConst *argv) {
    (void)this;
    for (int i = 0; i < argc; i++) {
        const char *text = JS_ToCString(context, argv[i]);
        if (!text) return JS_EXCEPTION;
        printf(i ? " %s" : "%s", text);
        JS_FreeCString(context, text);
    }
    putchar('\n');
    return JS_UNDEFINED;
}

int main(int argc, char **argv) {
    if (argc != 3 || strcmp(argv[1], "-e")) return fputs("usage: qjs -e SCRIPT\n", stderr), 2;
    JSRuntime *runtime = JS_NewRuntime();
    JSContext *context = runtime ? JS_NewContext(runtime) : NULL;
    if (!context) return fputs("out of memory\n", stderr), 1;
    JSValue global = JS_GetGlobalObject(context);
    JS_SetPropertyStr(context, global, "print", JS_NewCFunction(context, print, "print", 1));
    JSValue value = JS_Eval(context, argv[2], strlen(argv[2]), "<script>", JS_EVAL_TYPE_GLOBAL);
    if (!JS_IsException(value)) return 0; /* the process ends here: nothing needs to be freed */
    const char *text = JS_ToCString(context, JS_GetException(context));
    fprintf(stderr, "%s\n", text ? text : "an exception that has no text");
    return 1;
}
