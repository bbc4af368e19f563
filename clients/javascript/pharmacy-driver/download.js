// A downloaded prescription, checked without trusting the hub that gave it.
import { message } from "./schema.js";
import { encoding, sha256, verify } from "./signing.js";

/** The prescription is not what doctor, hospital pharmacist and hospital signed. */
export class DownloadInvalid extends Error {}

function fail(part, reason) {
  throw new DownloadInvalid(`${part}: ${reason}`);
}

/** The content of one part, after every signature of it was verified over the bytes as they came. */
function read(part, signed, type, keys) {
  if (!signed?.signatures.length) fail(part, "it is not signed");
  for (const { key_id: keyId, signature } of signed.signatures) {
    const record = keys.get(keyId);
    if (!record) fail(part, `nothing is known of the key ${keyId}`);
    const bytes = encoding(signed.payload_type, signed.payload);
    if (!verify(record.suite, Buffer.from(record.public_key, "hex"), bytes, signature)) {
      fail(part, `the signature is not that of the key ${keyId}`);
    }
  }
  if (signed.payload_type !== `application/vnd.erxhub.v1.${type}`) fail(part, "another content stands in its place");
  return message(type).deserialize(signed.payload);
}

function checkSigner(part, signed, keys, subject, institution, signedAtMs) {
  const record = keys.get(signed.signatures[0].key_id);
  if (record.subject_code !== subject || record.institution_code !== institution) fail(part, "signed by somebody else");
  if (signedAtMs < record.valid_from_ms || signedAtMs >= record.valid_until_ms) fail(part, "the key was not valid then");
}

/** The prescription document; throws DownloadInvalid. `trusted` are the records of everybody's signing keys. */
export function checkedDocument(reply, rxNo, trusted) {
  const keys = new Map(trusted.map((record) => [record.key_id, record]));
  const document = read("prescription", reply.prescription, "PrescriptionDocument", keys);
  const review = read("review", reply.review, "HospitalReviewStatement", keys);
  const seal = read("seal", reply.seal, "UploadSealStatement", keys);
  for (const [part, number] of Object.entries({ reply: reply.rx_no, prescription: document.rx_no, review: review.rx_no, seal: seal.rx_no })) {
    if (number !== rxNo) fail(part, `it is about ${number}`);
  }
  const { hospital_code: hospital, doctor_code: doctor } = document.prescription;
  if (seal.hospital_code !== hospital) fail("seal", `the prescription is of ${hospital}`);
  checkSigner("prescription", reply.prescription, keys, doctor, hospital, Number(document.signed_at_ms));
  checkSigner("review", reply.review, keys, review.pharmacist_code, hospital, Number(review.signed_at_ms));
  checkSigner("seal", reply.seal, keys, hospital, hospital, Number(seal.signed_at_ms));
  const digests = [
    ["review", review.prescription_sha256, reply.prescription.payload],
    ["seal", seal.prescription_sha256, reply.prescription.payload],
    ["seal", seal.review_sha256, reply.review.payload],
    ["file", seal.file_sha256, reply.file?.data ?? Buffer.alloc(0)],
  ];
  for (const [part, stated, bytes] of digests) {
    if (!sha256(bytes).equals(stated)) fail(part, "the signed digest is that of other bytes");
  }
  return document;
}
