// The published .proto files, read at run time: methods, messages, and which values of an enumeration are known.
import { fileURLToPath } from "node:url";
import * as loader from "@grpc/proto-loader";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const PUBLISHED = process.env.ERXHUB_PROTOS ?? fileURLToPath(new URL("../../../protos", import.meta.url));
const PACKAGE = "erxhub.v1.";

const definitions = loader.loadSync(
  ["erxhub/v1/dispensing.proto", "erxhub/v1/voucher.proto", "erxhub/v1/signed.proto", "google_rpc.proto"],
  { includeDirs: [PUBLISHED, HERE], keepCase: true, longs: String, enums: String, defaults: true },
);

/** A message type by its name without the package: {serialize, deserialize, type}. */
export function message(name) {
  const found = definitions[name.includes(".") ? name : PACKAGE + name];
  if (!found) throw new Error(`the .proto files have no ${name}`);
  return found;
}

/** A method by "Service/Method": path, requestType, responseType and their serialisers. */
export function method(name) {
  const [service, call] = name.split("/");
  return definitions[`${PACKAGE}${service}Service`][call];
}

/** "EFFECTIVE" of RX_STATUS_EFFECTIVE; "UNKNOWN_99" for a number that the .proto files do not have. */
export function enumName(type, value) {
  if (typeof value === "number") return `UNKNOWN_${value}`;
  const common = message(type).type.value[0].name.replace(/UNSPECIFIED$/, "");
  return value.startsWith(common) ? value.slice(common.length) : value;
}

/** Whether an enumeration anywhere in the message has a value that the .proto files do not have. */
export function hasUnknownEnum(definition, value) {
  return definition.type.field.some((field) => {
    const values = field.label === "LABEL_REPEATED" ? value[field.name] : [value[field.name]];
    // The loader names the values that it knows, and leaves the others as numbers.
    if (field.type === "TYPE_ENUM") return values.some((one) => typeof one === "number");
    if (field.type !== "TYPE_MESSAGE") return false;
    const part = message(field.typeName.split(".").pop());
    return values.some((one) => one && hasUnknownEnum(part, one));
  });
}
